"""Task vectors of one parameter, in an order that no permutation of the sources changes, and passes over them.

Legend: θ_0 base, τ_i = θ_i - θ_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.operators.kernels.combine import summed
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import active, flatten, flatten_base, result_like, row_length, spans
from evomerge.operators.kernels.thinning import Whole

Blend = Callable[[list[Tensor], int], Tensor]
"""(spans of the τ_i that may be overwritten, where they start) to the span of the merged task vector."""
_Value = TypeVar("_Value")
_ROW = 256
"""Elements that one thread sums by itself."""


class Tasks:
    """The task vectors of one parameter, read in spans; of all sources only spans are in memory at a time.

    Args:
        tensors: the sources.
        base: θ_0.
        context: names and identities; sums run in the order of the identities.
        columns: parameters with one value a source, by which sources of one content are ordered.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """

    def __init__(
        self, tensors: Sequence[Tensor], base: Tensor | None, context: Context, *columns: Sequence[float]
    ) -> None:
        flat = flatten(tensors, context)
        self._origin = flatten_base(base, tensors[0], context)
        self._like, self._context = tensors[0], context
        self._order = active(context, (1.0,) * len(flat), *columns)
        self._chosen = [flat[index] for index in self._order]

    @property
    def count(self) -> int:
        """How many task vectors there are."""
        return len(self._chosen)

    @property
    def order(self) -> list[int]:
        """Which of the sources they are of."""
        return self._order

    @property
    def numel(self) -> int:
        """Elements of each."""
        return self._origin.numel()

    @property
    def row(self) -> int:
        """Elements of a row."""
        return row_length(self._like)

    def ordered(self, values: Sequence[_Value]) -> list[_Value]:
        """Return a parameter's values in the order of the task vectors."""
        return [values[index] for index in self._order]

    def only(self, places: Sequence[int]) -> Tasks:
        """Return some of the task vectors, by their places here."""
        some = object.__new__(Tasks)
        some._origin, some._like, some._context = self._origin, self._like, self._context
        some._order = [self._order[place] for place in places]
        some._chosen = [self._chosen[place] for place in places]
        return some

    def parts(self, multiple: int = 1) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """Yield (start, span of θ_0, spans of the τ_i); spans are a whole number of `multiple` elements.

        The τ_i are float32 and may be overwritten, θ_0 may not.
        """
        for start, stop in spans(self.numel, self._origin.device, multiple):
            root = self._origin[start:stop]
            yield start, root, [flat[start:stop] - root for flat in self._chosen]

    def deltas(self) -> Iterator[list[Tensor]]:
        """Yield spans of the τ_i, which may be overwritten."""
        for _, _, deltas in self.parts():
            yield deltas

    def merge(self, blend: Blend, multiple: int = 1) -> Tensor:
        """Return θ_0 plus what `blend` makes of the task vectors, span by span."""
        out = result_like(self._like, self._context)
        for start, root, deltas in self.parts(multiple):
            out[start : start + len(root)] = blend(deltas, start).add_(root)
        return out.view(self._like.shape)

    def base(self) -> Tensor:
        """Return a copy of θ_0 in the result's dtype, bit by bit where that is its own."""
        return summed((), self._origin, {}, Whole(), result_like(self._like, self._context)).view(self._like.shape)

    def kept(self, what: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what depends on all sources and the base alone; see `Context.kept`."""
        return self._context.kept(what, make)

    def power_sums(self, power: int) -> list[float]:
        """Return Σ |τ_i|^p of every task vector in float64, p = 1 or 2. Not for what `only` returned."""

        def make() -> tuple[Tensor, ...]:
            sums = torch.zeros(self.count, dtype=torch.float64)
            for deltas in self.deltas():
                for place, delta in enumerate(deltas):
                    sizes = delta.double().abs_()
                    sums[place] += ordered_sum(sizes if power == 1 else sizes.square_())
            return (sums,)

        return [float(one) for one in self.kept(f"sums of task vectors to the power {power}", make)[0]]


def ordered_sum(values: Tensor) -> float:
    """Return the sum of a float64 vector, in an order that does not depend on the number of threads."""
    whole = values.numel() // _ROW * _ROW
    return float(values[:whole].view(-1, _ROW).sum(dim=1).sum() + values[whole:].sum())


def total(parts: Sequence[Tensor], factors: Sequence[float] | None = None) -> Tensor:
    """Return Σ c_i x_i of one or more tensors (c_i = 1 if not given), as a new tensor."""
    result = torch.zeros_like(parts[0])
    for place, part in enumerate(parts):
        result.add_(part, alpha=1.0 if factors is None else factors[place])
    return result
