"""Checks and readings that every kernel makes of its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.errors import NotBuiltError, SourceError
from evomerge.operators.kernels.context import Context, OfModel, alone
from evomerge.operators.kernels.scratch import Scratch
from evomerge.operators.metadata import SMALLEST_SUM, Resolved

_STORED = (torch.float32, torch.bfloat16, torch.float16)
_CPU_SPAN = 1 << 16
"""256 KiB of float32: the half dozen vectors of a kernel stay in the cache of one core."""
_DEVICE_SPAN = 1 << 26
_ROW = 256
RUN = 16
"""Elements that are sampled together: half a line of a cache or a whole one."""


class Flat:
    """A tensor as one row-major vector that is read in spans of float32, whatever float it is stored as.

    A tensor converted as a whole would cost more than the arithmetic: memory that is new to the process, and nothing
    of it in a cache.
    """

    __slots__ = ("stored",)

    def __init__(self, stored: Tensor) -> None:
        self.stored = stored.detach().contiguous().view(-1)

    def __getitem__(self, span: slice) -> Tensor:
        """Return a span as float32, shape (length,); it may be a view, and must not be changed."""
        return self.stored[span].float()

    def read(self, span: slice, scratch: Scratch) -> Tensor:
        """Return a span as float32, shape (length,), in `scratch` or a view; it must not be changed."""
        values = self.stored[span]
        return values if values.dtype == torch.float32 else scratch.take(len(values)).copy_(values)

    def minus(self, root: Tensor, span: slice, scratch: Scratch) -> Tensor:
        """Return a span less a vector as float32, shape (length,), in `scratch`."""
        values = self.stored[span]
        if values.dtype == torch.float32:
            return torch.sub(values, root, out=scratch.take(len(values)))
        return scratch.take(len(values)).copy_(values).sub_(root)

    def sample(self, runs: Tensor) -> Tensor:
        """Return runs of `RUN` elements by their numbers (int64), shape (runs, RUN) in float32."""
        whole = self.numel() // RUN * RUN
        return self.stored[:whole].view(-1, RUN).index_select(0, runs).float()

    def numel(self) -> int:
        """Return the number of elements."""
        return self.stored.numel()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.stored.device


class TaskVector:
    """The difference of two vectors, read in spans of float32."""

    __slots__ = ("base", "tuned")

    def __init__(self, tuned: Flat, base: Flat) -> None:
        self.tuned, self.base = tuned, base

    def __getitem__(self, span: slice) -> Tensor:
        """Return a span as float32, shape (length,); it may be changed."""
        return self.tuned[span] - self.base[span]

    def sample(self, runs: Tensor) -> Tensor:
        """Return runs of `RUN` elements by their numbers (int64), shape (runs, RUN) in float32."""
        return self.tuned.sample(runs).sub_(self.base.sample(runs))

    def numel(self) -> int:
        """Return the number of elements."""
        return self.base.numel()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.base.device


Vector = Flat | TaskVector


def flatten(tensors: Sequence[Tensor], context: Context) -> list[Flat]:
    """Return each tensor as one row-major vector.

    Raises:
        SourceError: when the tensors are not floats of one shape, or not as many as the source identities.
    """
    if len(tensors) != len(context.source_ids):
        raise SourceError(
            f"{context.name}: {len(tensors)} tensors came with {len(context.source_ids)} source identities; "
            "pass one identity a tensor"
        )
    return [_flat(tensor, tensors[0], context) for tensor in tensors]


def flatten_base(base: Tensor | None, like: Tensor, context: Context) -> Flat:
    """Return the base as one row-major vector.

    Raises:
        SourceError: when there is no base, or it does not fit `like`.
    """
    if base is None:
        raise SourceError(f"{context.name}: this method works on task vectors; name a base")
    return _flat(base, like, context)


def _flat(tensor: Tensor, like: Tensor, context: Context) -> Flat:
    if tensor.dtype not in _STORED:
        raise SourceError(f"{context.name}: kernels take float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.shape != like.shape:
        raise SourceError(
            f"{context.name}: shapes {tuple(like.shape)} and {tuple(tensor.shape)} differ; align them first"
        )
    return Flat(tensor)


def result_like(tensor: Tensor, context: Context) -> Tensor:
    """Return the vector for a kernel to write its result into, span by span: uninitialised, in `context.dtype`."""
    return context.empty(tensor.numel(), context.dtype, tensor.device)


def row_length(tensor: Tensor) -> int:
    """Return the elements of a row, which runs along the last dimension; 1 for a scalar or an empty row."""
    return max(1, tensor.shape[-1]) if tensor.dim() else 1


def spans(numel: int, device: torch.device, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over `numel` elements, each but the last a whole number of `multiple` elements.

    The width suits the device's caches and launch costs; elementwise results do not depend on it.
    """
    width = _CPU_SPAN if device.type == "cpu" else _DEVICE_SPAN
    width = max(1, width // multiple) * multiple
    for start in range(0, numel, width):
        yield start, min(start + width, numel)


def total(span: Tensor) -> float:
    """Return the sum of a float32 vector: rows of 256 entries in float32, their sums in float64.

    Whatever the number of threads, a row is summed in one order.
    """
    whole = span.numel() // _ROW * _ROW
    return float(span[:whole].view(-1, _ROW).sum(1).double().sum() + span[whole:].double().sum())


def number(params: Mapping[str, Resolved], name: str) -> float:
    """Return a parameter that is one number."""
    value = params[name]
    if isinstance(value, (tuple, str)):
        raise TypeError(f"parameter {name!r} must be one number, got {value!r}")
    return float(value)


def numbers(params: Mapping[str, Resolved], name: str) -> tuple[float, ...]:
    """Return a parameter that is one number a source."""
    value = params[name]
    if not isinstance(value, tuple):
        raise TypeError(f"parameter {name!r} must be one number a source, got {value!r}")
    return tuple(float(item) for item in value)


def global_threshold(context: Context, index: int, density: float) -> float:
    """Return the magnitude from which an entry of a source is among the top `density` of its whole model.

    Raises:
        NotBuiltError: when the caller makes no global pass.
    """
    if context.threshold is None:
        raise _no_global_pass(context)
    return context.threshold(index, density)


def measured_over(scope: Resolved, tensors: Sequence[Tensor], base: Tensor | None, context: Context) -> OfModel:
    """Return how something is measured: of the whole model for the scope `global`, else of this parameter alone.

    Raises:
        NotBuiltError: when the caller makes no global pass.
    """
    if scope != "global":
        return alone(tensors, base, context)
    if context.of_model is None:
        raise _no_global_pass(context)
    return context.of_model


def _no_global_pass(context: Context) -> NotBuiltError:
    return NotBuiltError(
        f"{context.name}: `scope: global` needs a pass over the whole model, which this caller does not make; "
        "use `scope: tensor`"
    )


def active(context: Context, weights: Sequence[float], *others: Sequence[float]) -> list[int]:
    """Return the indices of the sources whose weight is not 0, in an order that no permutation changes.

    Sums of floats depend on their order: sorting by identity makes equal recipes equal bit by bit.
    """
    columns = (context.source_ids, weights, *others)
    keys = list(zip(*columns, strict=True))
    return sorted((index for index, weight in enumerate(weights) if weight != 0), key=lambda index: keys[index])


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weights over their sum; over 1 where that sum is nearer to 0 than `SMALLEST_SUM`."""
    total = math.fsum(weights)
    divisor = total if abs(total) >= SMALLEST_SUM else 1.0
    return tuple(weight / divisor for weight in weights)
