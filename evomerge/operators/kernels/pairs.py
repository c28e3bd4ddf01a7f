"""What is taken over from one tuned model into the base: small steps (nearswap), important ones (Arcee fusion).

Legend: θ_0 base, θ_1 the other model, δ = θ_1 - θ_0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number
from evomerge.operators.kernels.ranks import ranked
from evomerge.operators.kernels.tasks import Tasks
from evomerge.operators.metadata import Resolved


def nearswap(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + clip(δ, -t, t): each weight moves towards the other model by at most t.

    mergekit's nearswap (from the model QuartetAnemoi-70B). Deviation: mergekit treats |δ| < 1e-6 as 1e-6, which only
    matters for t < 1e-6.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    step = number(params, "t")
    tasks = Tasks(tensors, base, context)
    return tasks.base() if step == 0 else tasks.merge(lambda deltas, _: deltas[0].clamp_(-step, step))


def arcee_fusion(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 plus the entries of δ whose importance is at least median + s·(third - first quartile).

    mergekit's arcee_fusion (there s = 1.5). Importance is |δ| times the divergence KL(softmax θ_1 ‖ softmax θ_0) of
    the row that the entry is in (rows along the last dimension); a quantile q of n entries is the one at place
    int(q·(n - 1)) from the smallest. Deviations: quantiles are exact for any n, where mergekit samples 10^6 entries
    anew at every run; the divergence is computed in float64 without adding 1e-8 to the probabilities, since for two
    siblings it is smaller than the rounding errors of a float32 sum.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, context)
    if tasks.numel == 0:
        return tasks.base()
    row = tasks.row
    divergence, quartiles = tasks.kept("importance for fusion", lambda: _importance(tasks))
    third, median, first = (float(one) for one in quartiles)
    limit = median + number(params, "spread") * (third - first)

    def keep(deltas: list[Tensor], start: int) -> Tensor:
        return deltas[0].masked_fill_(_scored(deltas[0], divergence, start, row) < limit, 0.0)

    return tasks.merge(keep, row)


def _importance(tasks: Tasks) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row (float32), and the third quartile, median and first of the importance."""
    row = tasks.row
    rows = [divergences(root.view(-1, row), deltas[0].view(-1, row)) for _, root, deltas in tasks.parts(row)]
    divergence = torch.cat(rows)
    last = tasks.numel - 1

    def stream() -> Iterator[list[Tensor]]:
        for start, _, deltas in tasks.parts(row):
            yield [_scored(deltas[0], divergence, start, row)]

    ranks = [tasks.numel - int(share * last) for share in (0.75, 0.5, 0.25)]
    return divergence, torch.tensor(ranked(stream, tasks.numel, [ranks])[0])


def _scored(delta: Tensor, divergence: Tensor, start: int, row: int) -> Tensor:
    matrix = delta.view(-1, row)
    first = start // row
    return (matrix.abs() * divergence[first : first + len(matrix)].unsqueeze(1)).view(-1)


def divergences(root: Tensor, delta: Tensor) -> Tensor:
    """Return KL(softmax(θ_0 + δ) ‖ softmax θ_0) of each row.

    As E_p[δ] - log(1 + E_q[e^δ - 1]) with q = softmax θ_0, p ∝ q e^δ: the difference of the two log-probabilities
    itself would lose every digit for a δ of 1e-8.

    Args:
        root: θ_0, shape (rows, columns).
        delta: δ, the same shape.

    Returns:
        float32 of shape (rows,), >= 0.
    """
    shares = root.double().softmax(dim=1)
    change = delta.double()
    change = change - change.max(dim=1, keepdim=True).values  # a common step of a row changes no softmax
    grown = (shares * change.expm1()).sum(dim=1).clamp_min(torch.finfo(torch.float64).eps - 1.0)
    mean = (shares * change * change.exp()).sum(dim=1) / (1.0 + grown)
    return (mean - grown.log1p()).clamp_min_(0.0).float()
