"""Where transformers loads the tensors of a checkpoint to: its own mapping, asked by names alone.

A model may hold a tensor under another name than the checkpoint does (GPT-NeoX's `embed_out`), or several of a
checkpoint as one (the experts of Mixtral and Qwen3-MoE). transformers knows how, per architecture, for loading; the
same renamings and conversions are applied here to one group of tensors at a time, instead of to a whole checkpoint.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of a checkpoint that go to one place: a single one as it is, or several that are converted together."""

    place: str
    """Name of what the model holds; where a conversion makes several tensors, of the first."""
    names: tuple[str, ...]
    """In the checkpoint, in the order in which transformers takes them."""
    patterns: tuple[str, ...] = ()
    """For each name, which pattern of the converter it matched."""
    converter: WeightConverter | None = None


class Conversion:
    """The way from the names of a checkpoint to those of a model."""

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """Ask transformers' mapping for every name.

        Args:
            model: built from the checkpoint's configuration; its weights are not looked at.
            names: of all tensors in the checkpoint.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        self._model = model
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        places, prefix = model.state_dict(), model.base_model_prefix
        ignored = _ignored(model)
        single: dict[str, Group] = {}
        members: dict[str, list[tuple[str, str]]] = {}
        unplaced: list[str] = []
        for name in sorted(names, key=dot_natural_key):
            place, pattern = rename_source_key(name, renamings, converters, prefix, places)
            if place not in places and name in places:
                place, pattern = rename_source_key(name, [], [], prefix, places)
            if place not in places:
                if ignored is None or ignored.search(place) is None:
                    unplaced.append(name)
            elif pattern is None:
                single[place] = Group(place, (name,))
            else:
                members.setdefault(place, []).append((name, pattern))
        several = {
            place: Group(place, *_columns(found), converter=by_pattern[found[0][1]]) for place, found in members.items()
        }
        self.groups: tuple[Group, ...] = (*single.values(), *several.values())
        """Every tensor that has a place, in one group."""
        self.unplaced: tuple[str, ...] = tuple(unplaced)
        """Tensors that transformers knows no place for, and does not leave out on purpose."""
        self._by_name = {name: group for group in self.groups for name in group.names}

    def place_of(self, name: str) -> str | None:
        """Return the name in the model of a tensor that goes there as it is; None where it does not."""
        group = self._by_name.get(name)
        return group.place if group is not None and group.converter is None else None

    def convert(self, group: Group, tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Return what the model holds of a group, by name in the model.

        Args:
            group: one of `groups`.
            tensors: of its names, in order.

        Raises:
            SourceError: when transformers cannot convert them.
        """
        if group.converter is None:
            return {group.place: tensors[0]}
        converter = copy.deepcopy(group.converter)  # it collects what it is given
        for name, pattern, tensor in zip(group.names, group.patterns, tensors, strict=True):
            converter.add_tensor(group.place, name, pattern, tensor)  # type: ignore[arg-type]  # a tensor will do
        try:
            with torch.no_grad():
                found = converter.convert(group.place, model=self._model, config=self._model.config)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise SourceError(f"transformers cannot convert the tensor {group.names[0]!r} ({error})") from error
        return {name: made[0] if isinstance(made, list) else made for name, made in found.items()}

    def parts(self, group: Group, whole: Tensor) -> tuple[Tensor, ...] | None:
        """Return which part of a model's tensor each tensor of a group is, as a view of it; None: not one part each.

        A group of experts is stacked, or several such stacks are concatenated; then its tensors can be written where
        they belong, and converting them costs nothing.

        Args:
            group: one of `groups`.
            whole: what the model has at the group's place.
        """
        from transformers.core_model_loading import Concatenate, MergeModulelist

        if group.converter is None:
            return (whole,)
        operations, patterns = group.converter.operations, group.converter.source_patterns
        if not isinstance(operations[0], MergeModulelist) or len(operations) > 2:
            return None
        stacks: Sequence[Tensor] = (whole,)
        if len(operations) == 2:
            if not isinstance(operations[1], Concatenate):
                return None
            stacks = whole.chunk(len(patterns), dim=operations[1].dim)
        if len(stacks) != len(patterns):
            return None
        experts = {
            pattern: iter(stack.unbind(operations[0].dim)) for pattern, stack in zip(patterns, stacks, strict=True)
        }
        found = tuple(part for pattern in group.patterns if (part := next(experts[pattern], None)) is not None)
        return found if sum(part.numel() for part in found) == whole.numel() else None

    def converted(
        self, tensors: Iterable[tuple[str, Tensor]], apart: Collection[str] = ()
    ) -> Iterator[tuple[str, str, Tensor]]:
        """Convert a stream of a checkpoint's tensors; what goes together waits for the last of its group.

        Args:
            tensors: (name in the checkpoint, tensor).
            apart: names of tensors that need no conversion, for instance because they are written into parts.

        Yields:
            (name in the checkpoint, name in the model, tensor); tensors without a place are left out.
        """
        waiting: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors:
            group = self._by_name.get(name)
            if group is None:
                continue
            if name in apart:
                yield name, group.place, tensor
                continue
            found = waiting.setdefault(group.place, {})
            found[name] = tensor
            if len(found) == len(group.names):
                del waiting[group.place]
                for place, made in self.convert(group, [found[each] for each in group.names]).items():
                    yield name, place, made


def _columns(rows: list[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name, _ in rows), tuple(pattern for _, pattern in rows)


def _ignored(model: PreTrainedModel) -> re.Pattern[str] | None:
    """Return what transformers leaves out of a checkpoint without a word, such as causal masks of old ones."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001  there is no public name
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None
