"""The part of a tensor that one rank needs, where a model is spread over several devices.

vLLM's loaders take whole tensors and cut their own part out of them, by one `narrow`. Which part that is, is seen
during the first reload and not guessed. From then on a rank merges its part alone, where every element of the result
depends on the same element of the inputs only, and hands over a tensor of the full shape of which only that part has
been written; the loader reads nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from evomerge import operators
from evomerge.merging import MergePlan, PlannedTensor, Sources, make_tensor
from evomerge.operators.kernels.context import Statistic
from evomerge.operators.metadata import StatisticKind

Window = tuple[int, int, int]
"""Dimension, start and length."""
_LOOKS = frozenset({"shape", "dtype", "device", "ndim", "is_meta", "layout", "requires_grad", "is_cpu", "is_cuda"})
_QUESTIONS = frozenset({"size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_contiguous"})


class WindowRecorder(TorchFunctionMode):
    """Sees what is done with tensors that are handed to vLLM."""

    def __init__(self) -> None:
        """Watch no tensor yet."""
        super().__init__()
        self._name: str | None = None
        self._tensor: Tensor | None = None
        self._used: dict[str, set[Window | None]] = {}

    def watch(self, name: str, tensor: Tensor) -> None:
        """Watch a tensor, and no longer the one before."""
        self._name, self._tensor = name, tensor

    def rest(self) -> None:
        """Watch no tensor until the next is named."""
        self._name = self._tensor = None

    def windows(self) -> Mapping[str, Window]:
        """Return the one part of each tensor that was used, of those that were used so."""
        found = {}
        for name, used in self._used.items():
            if len(used) == 1 and (window := next(iter(used))) is not None:
                found[name] = window
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note what is done with the watched tensor, and do it."""
        options = kwargs or {}
        tensor = self._tensor
        if tensor is not None and any(item is tensor for item in (*args, *options.values())):
            self._note(tensor, func, args, options)
        return func(*args, **options)

    def _note(
        self, tensor: Tensor, func: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
    ) -> None:
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") in _LOOKS:
            return
        if name in _QUESTIONS or self._name is None:
            return
        window: Window | None = None
        if name == "narrow" and args[0] is tensor:
            places = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | dict(options)
            window = int(places["dim"]), int(places["start"]), int(places["length"])
            if window[2] == tensor.shape[window[0]]:
                window = None
        self._used.setdefault(self._name, set()).add(window)


def is_elementwise(planned: PlannedTensor) -> bool:
    """Tell whether every element of a planned tensor depends on the same element of the sources alone."""
    if planned.stretches:
        return False
    if planned.step is None:
        return True
    spec = operators.get(planned.step.blend.method)
    return spec.scope == "element" and not spec.random


def make_window(merge: MergePlan, planned: PlannedTensor, device: str, window: Window) -> Tensor:
    """Make one part of an elementwise tensor; what is returned has its full shape, and nothing elsewhere.

    Raises:
        SourceError: when a source has NaN or infinite values there.
        InfeasibleError: when the blend is not finite there.
    """
    sources = cast("Sources", _Windowed(merge.sources, window))
    part = make_tensor(replace(merge, sources=sources), planned, device)
    whole = torch.empty(planned.info.shape, dtype=part.dtype, device=part.device)
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
