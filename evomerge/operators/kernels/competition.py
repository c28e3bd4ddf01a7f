"""PCB-Merging: entries of task vectors compete within a source, and between sources.

Legend: τ_i task vector i of N, u_i = τ_i / rms, z_i its magnitude from 0 to 1 within the source, s_i score, r density,
λ_i weight, λ scale. What is ranked, and over what means are taken, is the field: one tensor, or the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context, Model, Tensors
from evomerge.operators.kernels.inputs import measured_over, number, numbers
from evomerge.operators.kernels.ranks import ranked
from evomerge.operators.kernels.selection import kept_count
from evomerge.operators.kernels.tasks import Tasks, total
from evomerge.operators.metadata import Resolved


def pcb(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ Σ β_i λ_i τ_i / Σ β_i, where β_i is 0 below the (1 - r)-quantile of the scores of source i.

    Du et al. 2024, arXiv:2410.02396, as released: |τ_i| is clipped to its own [c, 1 - c] quantiles, z_i runs from 0 at
    the lower to 1 at the upper one, s_i = exp(N z_i²)·tanh(g·u_i·Σ u_j), and β_i is s_i above the quantile, scaled to
    [0, 1]. Quantiles are of the tensor, or of the whole model with `scope: global` (the paper). Deviations: u_i is τ_i
    over the common root mean square of the task vectors, which makes the result exactly scale-equivariant (the released
    tanh(τ_i·Στ_j) is in its linear range for ordinary fine-tunes: a small gain g gives the same ranks); sources that
    equal the base take no part (they give NaN in the released code), nor do entries that oppose the sum, even where
    fewer than r·n agree with it.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
        NotBuiltError: for scope "global" from a caller that makes no global pass.
    """
    weights, scale = numbers(params, "weight"), number(params, "scale")
    tasks = Tasks(tensors, base, context, weights)
    measure = measured_over(params["scope"], tensors, base, context)
    *squares, numel = measure(f"sums of squares {tasks.order}", lambda model: _squares(model, weights))[0].tolist()
    ordered = tasks.ordered(weights)
    places = [place for place, square in enumerate(squares) if square > 0 and ordered[place] != 0]
    if scale == 0 or not places:
        return tasks.base()
    clip, density, gain = (number(params, name) for name in ("clip", "density", "gain"))
    inverse_rms = math.sqrt(len(places) * numel / math.fsum(squares[place] for place in places))
    field = _Field(weights, tasks.only(places).order, int(numel))
    (ends,) = measure(f"ends {clip} {field.order}", lambda model: (field.ends(model, clip),))
    scores = _Scores([(low, high) for high, low in ends.tolist()], math.sqrt(gain) * inverse_rms)
    kept = kept_count(field.numel, density)
    (limits,) = measure(
        f"limits {clip} {gain} {kept} {field.order}", lambda model: (field.limits(model, scores, kept),)
    )
    factors = [scale * ordered[place] for place in places]

    def blend(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        merged, weight = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
        for place, (score, delta) in enumerate(zip(scores.of(deltas), deltas, strict=True)):
            top, limit = limits[place].tolist()
            share = _share(score, limit, top)
            weight += share
            merged.add_(share.mul_(scores.clipped(place, delta)).mul_(delta.sign_()), alpha=factors[place])
        return merged.div_(weight.masked_fill_(weight == 0, 1.0))

    return tasks.only(places).merge(blend)


def _squares(model: Model, weights: Sequence[float]) -> Tensors:
    """Return Σ τ_i² of all sources over a field and its number of elements, float64 of shape (N + 1,)."""
    sums = torch.zeros(len(weights) + 1, dtype=torch.float64)
    for tensors, base, context in model():
        tasks = Tasks(tensors, base, context, weights)
        sums += torch.tensor([*tasks.power_sums(2), tasks.numel], dtype=torch.float64)
    return (sums,)


@dataclass(frozen=True, slots=True)
class _Field:
    """The task vectors that compete, and the entries over which they do."""

    weights: Sequence[float]
    """Of all sources: those of one content are ordered by them."""
    order: Sequence[int]
    """The sources that compete."""
    numel: int

    def deltas(self, model: Model) -> Iterator[list[Tensor]]:
        """Yield spans of the task vectors that compete."""
        for tensors, base, context in model():
            tasks = Tasks(tensors, base, context, self.weights)
            yield from tasks.only([tasks.order.index(index) for index in self.order]).deltas()

    def ends(self, model: Model, clip: float) -> Tensor:
        """Return the upper and the lower quantile of each magnitude: float64 of shape (sources, 2)."""
        beyond = min(int(clip * self.numel), (self.numel - 1) // 2)
        return self._ranked(lambda: self.deltas(model), beyond + 1, self.numel - beyond)

    def limits(self, model: Model, scores: _Scores, kept: int) -> Tensor:
        """Return each source's largest score and that up to which an entry is dropped (0 if all are kept)."""

        def stream() -> Iterator[list[Tensor]]:
            for deltas in self.deltas(model):
                yield scores.of(deltas)

        if kept < self.numel:
            return self._ranked(stream, 1, kept + 1)
        top = self._ranked(stream, 1)
        return torch.cat([top, torch.zeros_like(top)], 1)

    def _ranked(self, stream: Callable[[], Iterator[list[Tensor]]], *ranks: int) -> Tensor:
        return torch.tensor(ranked(stream, self.numel, [ranks] * len(self.order)), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class _Scores:
    """The scores of every entry, span by span; negative ones count as 0."""

    ends: Sequence[tuple[float, float]]
    """Lower and upper quantile of each magnitude."""
    factor: float
    """√g / rms."""

    def clipped(self, place: int, delta: Tensor) -> Tensor:
        """Return |τ| of one source within its quantiles."""
        return delta.abs().clamp_(*self.ends[place])

    def of(self, deltas: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores of a span, each in [0, 1)."""
        whole = total(deltas).mul_(self.factor)
        found = []
        for place, delta in enumerate(deltas):
            low, high = self.ends[place]
            within = self.clipped(place, delta).sub_(low).div_(high - low or 1.0)
            # exp(N z² - N): the common factor is divided out later, and nothing overflows.
            grown = within.square_().sub_(1.0).mul_(len(deltas)).exp_()
            found.append(grown.mul_((delta * self.factor).mul_(whole).tanh_()).clamp_(min=0.0))
        return found


def _share(score: Tensor, low: float, high: float) -> Tensor:
    """Return β: 0 up to `low`, then linear up to 1 at `high`; where the largest scores are equal, 1 for each."""
    if high > low:
        return score.sub_(low).clamp_(min=0.0).div_(high - low)
    return (score >= high).float() if high > 0 else torch.zeros_like(score)
