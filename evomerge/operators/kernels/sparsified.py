"""Task vectors thinned out before they are summed.

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after trimming or dropping, w_i weight, ρ_i density, λ scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.combine import elected, l1_factors, summed
from evomerge.operators.kernels.context import Context, Tensors
from evomerge.operators.kernels.inputs import (
    Flat,
    active,
    flatten,
    flatten_base,
    global_threshold,
    normalized,
    number,
    numbers,
    result_like,
    row_length,
)
from evomerge.operators.kernels.masks import mask_key
from evomerge.operators.kernels.selection import row_thresholds, task_thresholds
from evomerge.operators.kernels.thinning import Drop, Sparsify, Trim
from evomerge.operators.metadata import Resolved


def ties(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ·merge(elect(trim(τ_i))) (Yadav et al. 2023, arXiv:2306.01708).

    Trim keeps the entries of at least the k-th largest magnitude of the tensor, row or model, k = max(1,
    int(ρ·n)). Deviations: every entry equal to the threshold is kept (the released code keeps one more than
    k, mergekit exactly k by an unstable sort); `rescale: l1` restores the L1 norm of what was trimmed (mergekit's
    `rescale`); entries of 0 never vote; votes that cancel give 0 unless
    `zero_sign` says otherwise; the mean divides by Σ |w_i| of those that agree.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
        NotBuiltError: for scope "global" from a caller that makes no global pass.
    """
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    weights, densities = numbers(params, "weight"), numbers(params, "density")
    order = active(context, weights, densities)
    row = row_length(tensors[0]) if params["scope"] == "row" else 1
    trimmed = {index: densities[index] for index in order if densities[index] < 1}
    limits = {} if params["scope"] == "row" else _limits(flat, origin, trimmed, str(params["scope"]), context)

    def trim_rows(index: int, delta: Tensor, start: int) -> Tensor:  # noqa: ARG001  as every `Sparsify`
        if densities[index] >= 1:
            return delta
        matrix = delta.view(-1, row)
        return matrix.mul_(matrix.abs() >= row_thresholds(matrix, densities[index])).view(-1)

    trim = trim_rows if params["scope"] == "row" else Trim(limits)
    out = result_like(tensors[0], context)
    factors = l1_factors(flat, origin, params, order, trim, multiple=row)
    return elected(flat, origin, params, order, trim, out, factors=factors, multiple=row).view(tensors[0].shape)


def _limits(
    flat: Sequence[Flat], origin: Flat, densities: Mapping[int, float], scope: str, context: Context
) -> dict[int, float]:
    """Return the magnitudes from which an entry of a task vector is kept."""
    if scope == "global":
        return {index: global_threshold(context, index, density) for index, density in densities.items()}
    if not densities:
        return {}

    def found() -> Tensors:
        limits = task_thresholds({index: flat[index] for index in densities}, origin, densities)
        return (torch.tensor(list(limits.values())),)

    what = [(context.source_ids[index], density) for index, density in densities.items()]
    limits = context.kept(f"thresholds {what}", found)[0].tolist()
    return dict(zip(densities, limits, strict=True))


def dare_linear(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ Σ w_i τ̂_i with τ̂_i = factor · b_i ⊙ τ_i, b_i ~ Bernoulli(ρ_i).

    Yu et al. 2024, arXiv:2311.03099. The factor is 1/ρ_i (`inv_keep`, unbiased), ‖τ_i‖₁/‖b_i ⊙ τ_i‖₁ (`l1`,
    as in mergekit), or 1 (`none`). The masks come from `masks.keep_mask`; two sources of one content have one
    mask.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    weights, densities = numbers(params, "weight"), numbers(params, "density")
    if params["normalize"]:
        weights = normalized(weights)
    scale = number(params, "scale")
    order = active(context, [scale * weight for weight in weights], densities)
    drop, factors = _dropping(flat, origin, params, order, context)
    coefficients = {index: scale * weights[index] * factors[index] for index in order}
    return summed(flat, origin, coefficients, drop, result_like(tensors[0], context)).view(tensors[0].shape)


def dare_ties(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ·merge(elect(τ̂_i)) with τ̂_i as in `dare_linear` and the election of `ties`.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    order = active(context, numbers(params, "weight"), numbers(params, "density"))
    drop, factors = _dropping(flat, origin, params, order, context)
    out = result_like(tensors[0], context)
    return elected(flat, origin, params, order, drop, out, factors=factors).view(tensors[0].shape)


def _dropping(
    flat: Sequence[Flat],
    origin: Flat,
    params: Mapping[str, Resolved],
    order: Sequence[int],
    context: Context,
) -> tuple[Sparsify, dict[int, float]]:
    """Return what drops entries at random, and each source's factor for the rest."""
    densities = numbers(params, "density")
    keys = {index: mask_key(context.seed, context.name, context.source_ids[index]) for index in order}
    drop = Drop(keys, {index: densities[index] for index in order})
    if params["rescale"] == "inv_keep":
        return drop, {index: 1.0 / densities[index] for index in order}
    return drop, l1_factors(flat, origin, params, order, drop) or dict.fromkeys(order, 1.0)
