"""What each tensor of a planned merge is made of, as a digest: equal digests, equal tensors.

An engine keeps the digest of what it holds, so that the next candidate brings only what is different; and the process
that plans tells by them whether the worker that merges planned the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from evomerge.merging import MergePlan, PlannedTensor

Blueprint = Mapping[str, str]
"""Name of a tensor -> SHA-256 (hex) of all that it is made of."""


def blueprint(merge: MergePlan) -> Blueprint:
    """Return the digests of all tensors of a merge, in order.

    A digest depends on the blend with every digit of its parameters, on the contents of all sources of the recipe, on
    the tensors that are read of them, on the seed of random masks, on the fold and on the dtype; not on where files
    are.
    """
    contents = {alias: merge.sources.infos[alias].content_hash for alias in merge.recipe.sources}
    common = summary({**contents, "seed": str(merge.recipe.seed)})
    steps = {id(planned.step): planned.step for planned in merge.tensors}
    plain_steps = {key: _plain(step) for key, step in steps.items()}  # few, and shared by many tensors
    return {planned.name: _digest(planned, plain_steps[id(planned.step)], common) for planned in merge.tensors}


def summary(digests: Mapping[str, str]) -> str:
    """Return one digest (hex) of digests by name, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _digest(planned: PlannedTensor, step: Any, common: str) -> str:
    rest = {item.name: _plain(getattr(planned, item.name)) for item in fields(planned) if item.name != "step"}
    made_of = [common, step, rest]  # the name is among it: random masks are drawn for it
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a function as its name, a dataclass as its fields, whatever these come to be."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
