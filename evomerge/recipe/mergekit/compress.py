"""Blends of many tensors in few words: one of the layer, of module groups that differ, and of single tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.recipe.mergekit.methods import Settings
from evomerge.recipe.mergekit.places import Tensor
from evomerge.recipe.patterns import matches
from evomerge.recipe.resolution import MODULES

Described = tuple[Settings, dict[str, Settings], dict[str, Settings]]
"""The blend of a layer, of its module groups that differ, and of its parts (name within the layer) that differ."""


def parts_of(tensors: Sequence[Tensor]) -> Described:
    """Describe the tensors of a layer."""
    groups = {module: [tensor for tensor in tensors if tensor.module == module] for module in MODULES}
    every = [tensor.blend for tensor in tensors]
    usual = {module: _most([tensor.blend for tensor in group], every) for module, group in groups.items() if group}
    default = _most(list(usual.values()), every)
    modules: dict[str, Settings] = {module: blend for module, blend in usual.items() if blend != default}
    exceptions = {
        _within(tensor.name): tensor.blend
        for tensor in tensors
        if tensor.blend != usual[tensor.module]  # type: ignore[index]
    }
    return default, modules, exceptions


def _most(blends: Sequence[Settings], every: Sequence[Settings]) -> Settings:
    """Return the most frequent blend; of several that of most tensors, then the first."""
    counts, outside = Counter(map(repr, blends)), Counter(map(repr, every))
    return max(blends, key=lambda blend: (counts[repr(blend)], outside[repr(blend)]))


def _within(name: str) -> str:
    """Return what follows the layer's number in a name."""
    pieces = name.split(".")
    place = next((index for index, piece in enumerate(pieces) if piece.isdigit()), -1)
    return ".".join(pieces[place + 1 :])


def written(modules: Mapping[str, Settings], default: Settings) -> dict[str, Any] | None:
    """Return the blends of module groups, each with what it changes of the layer's."""
    if not modules:
        return None
    return {
        module: {
            key: value for key, value in blend.items() if default["method"] != blend["method"] or default[key] != value
        }
        for module, blend in modules.items()
    }


def rules_of(
    tensors: Sequence[Tensor], exceptions: Mapping[str, Settings], names: Iterable[str]
) -> list[dict[str, Any]]:
    """Return entries of `tensors` for exceptions, with the shortest patterns that match nothing else.

    Args:
        tensors: those of the place.
        exceptions: blend by name, or by name within the layer.
        names: every name that the patterns meet.
    """
    kinds: dict[str, tuple[Settings, list[str]]] = {}
    for tensor in tensors:
        blend = exceptions.get(tensor.name, exceptions.get(_within(tensor.name)))
        if blend is not None and tensor.blend == blend:
            kinds.setdefault(repr(blend), (blend, []))[1].append(tensor.name)
    everything = set(names)
    rules = []
    for blend, targets in kinds.values():
        patterns = _patterns(targets, everything - set(targets))
        rules.append({"match": patterns[0] if len(patterns) == 1 else patterns, "blend": blend})
    return rules


def _patterns(targets: Sequence[str], others: Iterable[str]) -> list[str]:
    found: list[str] = []
    rest = list(others)
    for name in targets:
        if matches(found, name):
            continue
        found.append(next(text for text in _candidates(name) if not any(matches((text,), other) for other in rest)))
    return found


def _candidates(name: str) -> Iterable[str]:
    """Yield patterns for a name from short to long; the last one is the name."""
    pieces = name.split(".")
    inner = pieces[:-1] if len(pieces) > 1 and pieces[-1] in ("weight", "bias") else pieces
    place = max((index for index, piece in enumerate(inner) if piece.isdigit()), default=-1)
    for start in range(len(inner) - 1, place, -1):
        yield ".".join(inner[start:])
    yield ".".join(pieces[place + 1 :])
    yield name
