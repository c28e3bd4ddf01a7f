"""OTA merging with Fast Fisher Grafting.

Legend: θ_0 base, τ_i = θ_i - θ_0, v_i importance (Adam's second moments or a Fisher), m_i its mask, c_i share, p power,
ρ_i density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.importance import common_scale, graft_score, importances
from evomerge.operators.kernels.inputs import (
    TaskVector,
    active,
    flatten,
    flatten_base,
    global_threshold,
    normalized,
    number,
    numbers,
    result_like,
    spans,
)
from evomerge.operators.kernels.selection import stream_threshold
from evomerge.operators.kernels.weighted import task_arithmetic
from evomerge.operators.metadata import Resolved, StatisticKind


def ota(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + Σ P_i m_i τ_i / Σ P_i m_i, P_i = c_i v_i^p (Mahdavinia et al. 2025, arXiv:2509.11167).

    m_i keeps the entries whose v_i τ_i² is among the top ρ_i of the model, or of the tensor. Deviations: the division
    has no ε (the released 1e-8 outweighs √v); an entry that no source keeps is the base's, and one whose kept
    importances are all 0 is the mean of the kept ones. A parameter for which a source has no importance is the mean of
    all sources.

    Raises:
        SourceError: for a missing base, tensors or statistics that do not fit each other, or statistics not given.
        NotBuiltError: for scope "global" from a caller that makes no global pass.
    """
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    shares = normalized(numbers(params, "weight"))
    order = active(context, shares, numbers(params, "density"))
    found = importances(order, cast("StatisticKind", params["importance"]), tensors[0], context) if order else None
    if found is None:
        return task_arithmetic(tensors, base, {"weight": shares, "scale": 1.0, "normalize": False}, context)
    scales = [1 / item.mean if params["normalize"] else 1.0 for _, item in found]
    common = common_scale([item.mean * scale for (_, item), scale in zip(found, scales, strict=True)])
    deltas = [TaskVector(flat[index], origin) for index in order]
    values = [importance for importance, _ in found]
    limits = _limits(order, deltas, values, params, context)
    power = number(params, "power")
    out = result_like(tensors[0], context)
    for start, stop in spans(out.numel(), out.device):
        root = origin[start:stop]
        total, weight, plain, count = (torch.zeros_like(root) for _ in range(4))
        for index, vector, value, scale, limit in zip(order, deltas, values, scales, limits, strict=True):
            delta, importance = vector[start:stop], value[start:stop]
            kept = torch.where(graft_score(delta, importance) >= limit, shares[index], 0.0)
            part = importance.mul(scale / common).pow_(power).mul_(kept)
            weight += part
            total.addcmul_(part, delta)
            count += kept
            plain.addcmul_(kept, delta)
        mean = torch.where(count > 0, plain / count, torch.zeros_like(root))
        out[start:stop] = torch.where(weight > 0, total / weight, mean).add_(root)
    return out.view(tensors[0].shape)


def _limits(
    order: Sequence[int],
    deltas: Sequence[TaskVector],
    values: Sequence[Tensor],
    params: Mapping[str, Resolved],
    context: Context,
) -> list[float]:
    """Return, for each source of `order`, the score from which an entry is kept."""
    densities = numbers(params, "density")
    limits = []
    for index, delta, value in zip(order, deltas, values, strict=True):
        if densities[index] >= 1:
            limits.append(0.0)
        elif params["scope"] == "tensor":
            limits.append(_tensor_limit(delta, value, densities[index]))
        else:
            limits.append(global_threshold(context, index, densities[index]))
    return limits


def _tensor_limit(delta: TaskVector, value: Tensor, density: float) -> float:
    parts = list(spans(delta.numel(), delta.device))
    return stream_threshold(lambda: (graft_score(delta[a:b], value[a:b]) for a, b in parts), density)
