"""The part of a tensor that one rank needs, where a model is spread over several devices.

vLLM's loaders take whole tensors and cut their own part out of them, by one `narrow` (`loaders.LoaderWatch` sees which
part). A rank merges its part alone where every element of the result depends on the same element of the inputs only. A
loader is handed a tensor of the full shape of which only that part has been written; it reads nothing else of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from evomerge import operators
from evomerge.merging import MergePlan, PlannedTensor, Sources, make_tensor
from evomerge.operators.kernels.context import Statistic
from evomerge.operators.metadata import StatisticKind

Window = tuple[int, int, int]
"""Dimension, start and length."""


def shape_of(whole: tuple[int, ...], window: Window | None) -> tuple[int, ...]:
    """Return the shape of the part that a window cuts out of a tensor; None: of all of it."""
    if window is None:
        return whole
    dimension, _, length = window
    return (*whole[:dimension], length, *whole[dimension + 1 :])


def is_elementwise(planned: PlannedTensor) -> bool:
    """Tell whether every element of a planned tensor depends on the same element of the sources alone."""
    if planned.stretches:
        return False
    if planned.step is None:
        return True
    spec = operators.get(planned.step.blend.method)
    return spec.scope == "element" and not spec.random


def make_window(
    merge: MergePlan, planned: PlannedTensor, device: str, window: Window, *, out: Tensor | None = None
) -> Tensor:
    """Make one part of an elementwise tensor, as `make_tensor` makes the whole.

    Raises:
        SourceError: when a source has NaN or infinite values there.
        InfeasibleError: when the blend is not finite there.
    """
    sources = cast("Sources", _Windowed(merge.sources, window))
    return make_tensor(replace(merge, sources=sources), planned, device, out=out)


def spread(part: Tensor, window: Window, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of the full shape that holds a part at its place, and nothing elsewhere."""
    whole = torch.empty(shape, dtype=part.dtype, device=part.device)
    whole.narrow(*window).copy_(part)
    return whole


class _Windowed:
    """Sources of which only one part of each tensor is read."""

    def __init__(self, sources: Sources, window: Window) -> None:
        self._sources, self._window = sources, window

    def working(self, alias: str, name: str, device: str | None = None, *, checked: bool = True) -> Tensor:
        return self._sources.working(alias, name, device, window=self._window, checked=checked)

    def measured(self, alias: str, kind: StatisticKind, name: str, device: str | None = None) -> Statistic | None:
        return self._sources.measured(alias, kind, name, device, window=self._window)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sources, name)
