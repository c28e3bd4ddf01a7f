"""Averages whose weights come from the training run (MWA) or from the angles of task vectors (model stock).

Legend: θ_0 base, θ_i source i of N, τ_i = θ_i - θ_0, c mean pairwise cosine of the τ_i, t share of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number, numbers
from evomerge.operators.kernels.tasks import Tasks, ordered_sum, total
from evomerge.operators.kernels.weighted import linear
from evomerge.operators.metadata import Resolved

_SINGULAR = 1e-6
"""1 + (N - 1) c below this: the task vectors cancel, and their mean is about 0 whatever its share."""


def mwa(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return Σ w_i θ_i over checkpoints of one training run, w_i from a metric of each (arXiv:2504.18580).

    The paper's map from metric to weight could not be verified, so the families have names of their own, with m_i the
    metric and ρ the `sharpness`: `loss_power` w ∝ m^-ρ, `loss_exponential` w ∝ exp(-ρ (m - min m) / min m),
    `step_power` w ∝ m^ρ. Σ w_i = 1; ρ = 0 is the plain average, a large ρ the best (or last) checkpoint; a common
    factor of the metrics cancels. Adapters are averaged factor by factor, which is not the average of their products.

    Raises:
        SourceError: for tensors that do not fit each other.
    """
    metrics, sharpness = numbers(params, "metric"), number(params, "sharpness")
    weights = family_weights(metrics, str(params["weighting"]), sharpness)
    return linear(tensors, base, {"weight": weights, "normalize": True}, context)


def family_weights(metrics: Sequence[float], weighting: str, sharpness: float) -> tuple[float, ...]:
    """Return weights that are positive up to underflow, the largest of them 1.

    Args:
        metrics: one a checkpoint, > 0: losses, or steps for `step_power`.
        weighting: loss_power, loss_exponential or step_power.
        sharpness: ρ, >= 0.
    """
    best = min(metrics)
    if weighting == "loss_exponential":
        logs = [-sharpness * (metric - best) / best for metric in metrics]
    else:
        sign = 1.0 if weighting == "step_power" else -1.0
        logs = [sign * sharpness * math.log(metric) for metric in metrics]
    return tuple(math.exp(log - max(logs)) for log in logs)


def model_stock(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + t·mean(τ_i) with t = N c / (1 + (N - 1) c) (Jang et al. 2024, arXiv:2403.19522).

    c is the mean over pairs of the cosine between task vectors, in float64: of the whole tensor, or with `scope: row`
    of each row along the last dimension (mergekit's `filter_wise`; a vector is one row). A pair with a task vector of
    0 counts as orthogonal; where 1 + (N - 1) c < 1e-6 the task vectors cancel and the result is the base. Deviations:
    t < 0 (obtuse on average) counts as 0 unless `clip` is false, as in mergekit; norms have no absolute lower bound,
    where mergekit's turns tensors of light fine-tunes (norms below 1e-3) back towards the base.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, context)
    clip = bool(params["clip"])
    if params["scope"] == "tensor" or tensors[0].dim() < 2:
        share = float(mean_share(tasks.kept("products of task vectors", lambda: (_products(tasks),))[0], clip=clip))
        return tasks.merge(lambda deltas, _: total(deltas).mul_(share / tasks.count))
    row = tasks.row

    def by_row(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        rows = torch.stack([delta.view(-1, row) for delta in deltas], dim=1).double()
        shares = mean_share(rows @ rows.mT, clip=clip).div_(tasks.count).float()
        return total(deltas).view(-1, row).mul_(shares.unsqueeze(1)).view(-1)

    return tasks.merge(by_row, row)


def _products(tasks: Tasks) -> Tensor:
    """Return the inner products of the task vectors: float64 of shape (N, N)."""
    products = torch.zeros(tasks.count, tasks.count, dtype=torch.float64)
    for deltas in tasks.deltas():
        exact = [delta.double() for delta in deltas]
        for row, first in enumerate(exact):
            for column in range(row + 1):
                products[row, column] += ordered_sum(first * exact[column])
    return products + products.tril(-1).T


def mean_share(products: Tensor, *, clip: bool) -> Tensor:
    """Return t, the share of the task vectors' mean.

    Args:
        products: inner products of N >= 2 task vectors, float64 of shape (..., N, N).
        clip: whether a share below 0 counts as 0.

    Returns:
        float64 of shape (...), at most 1.
    """
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    lengths = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    cosines = torch.where(lengths > 0, products / lengths.where(lengths > 0, torch.ones_like(lengths)), 0.0)
    pairs = cosines.clamp(-1.0, 1.0).triu(1).sum(dim=(-2, -1))
    cosine = pairs / (count * (count - 1) / 2)
    below = 1.0 + (count - 1) * cosine
    share = torch.where(below < _SINGULAR, 0.0, count * cosine / below.clamp_min(_SINGULAR))
    return share.clamp_min(0.0) if clip else share
