"""PCB-Merging: entries of task vectors compete within a source, and between sources.

Legend: τ_i task vector i of N, u_i = τ_i / rms, z_i its magnitude from 0 to 1 within the source, s_i score, r density,
λ_i weight, λ scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number, numbers
from evomerge.operators.kernels.ranks import ranked
from evomerge.operators.kernels.selection import kept_count
from evomerge.operators.kernels.tasks import Tasks, total
from evomerge.operators.metadata import Resolved


def pcb(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ Σ β_i λ_i τ_i / Σ β_i, where β_i is 0 below the (1 - r)-quantile of the scores of source i.

    Du et al. 2024, arXiv:2410.02396, as released: |τ_i| is clipped to its own [c, 1 - c] quantiles, z_i runs from 0 at
    the lower to 1 at the upper one, s_i = exp(N z_i²)·tanh(g·u_i·Σ u_j), and β_i is s_i above the quantile, scaled to
    [0, 1]. Deviations: quantiles are of the tensor, not of the whole model; u_i is τ_i over the common root mean square
    of the task vectors, which makes the result exactly scale-equivariant (the released tanh(τ_i·Στ_j) is in its linear
    range for ordinary fine-tunes: a small gain g gives the same ranks); sources that equal the base take no part (they
    give NaN in the released code), nor do entries that oppose the sum, even where fewer than r·n agree with it.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    weights, scale = numbers(params, "weight"), number(params, "scale")
    tasks = Tasks(tensors, base, context, weights)
    squares, ordered = tasks.power_sums(2), tasks.ordered(weights)
    places = [place for place, square in enumerate(squares) if square > 0 and ordered[place] != 0]
    if scale == 0 or not places:
        return tasks.base()
    tasks = tasks.only(places)
    inverse_rms = math.sqrt(tasks.count * tasks.numel / math.fsum(squares[place] for place in places))
    factors = [scale * ordered[place] for place in places]
    scores = _Scores(tasks, number(params, "clip"), math.sqrt(number(params, "gain")) * inverse_rms)
    limits = scores.limits(kept_count(tasks.numel, number(params, "density")))

    def blend(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        found = scores.of(deltas)
        merged, weight = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
        for place, (score, delta) in enumerate(zip(found, deltas, strict=True)):
            share = _share(score, *limits[place])
            weight += share
            merged.add_(share.mul_(scores.clipped(place, delta)).mul_(delta.sign_()), alpha=factors[place])
        return merged.div_(weight.masked_fill_(weight == 0, 1.0))

    return tasks.merge(blend)


class _Scores:
    """The scores of every entry, span by span; negative ones count as 0."""

    def __init__(self, tasks: Tasks, clip: float, factor: float) -> None:
        self._tasks, self._factor = tasks, factor
        beyond = min(int(clip * tasks.numel), (tasks.numel - 1) // 2)
        ends = [[beyond + 1, tasks.numel - beyond]] * tasks.count

        def stream() -> Iterator[list[Tensor]]:
            for _, _, deltas in tasks.parts():
                yield deltas

        self._ends = ranked(stream, tasks.numel, ends)

    def clipped(self, place: int, delta: Tensor) -> Tensor:
        """Return |τ| of one source within its quantiles."""
        high, low = self._ends[place]
        return delta.abs().clamp_(low, high)

    def of(self, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores of a span, each in [0, 1)."""
        whole = total(deltas).mul_(self._factor)
        found = []
        for place, delta in enumerate(deltas):
            high, low = self._ends[place]
            within = self.clipped(place, delta).sub_(low).div_(high - low or 1.0)
            # exp(N z² - N): the common factor is divided out later, and nothing overflows.
            grown = within.square_().sub_(1.0).mul_(len(deltas)).exp_()
            found.append(grown.mul_((delta * self._factor).mul_(whole).tanh_()).clamp_(min=0.0))
        return found

    def limits(self, kept: int) -> list[tuple[float, float]]:
        """Return, for each source, the score up to which an entry is dropped (0 if all are kept), and the largest."""

        def stream() -> Iterator[list[Tensor]]:
            for _, _, deltas in self._tasks.parts():
                yield self.of(deltas)

        ranks = [1, kept + 1] if kept < self._tasks.numel else [1]
        found = ranked(stream, self._tasks.numel, [ranks] * self._tasks.count)
        return [(of_one[1] if len(of_one) > 1 else 0.0, of_one[0]) for of_one in found]


def _share(score: Tensor, low: float, high: float) -> Tensor:
    """Return β: 0 up to `low`, then linear up to 1 at `high`; where the largest scores are equal, 1 for each."""
    if high > low:
        return score.sub_(low).clamp_(min=0.0).div_(high - low)
    return (score >= high).float() if high > 0 else torch.zeros_like(score)
