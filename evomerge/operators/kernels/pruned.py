"""Task vectors pruned by the rank of each entry's magnitude: a band of ranks (breadcrumbs), or by chance (DELLA).

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after pruning, w_i weight, ρ_i density, λ scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.combine import elected, l1_factor, l1_factors, summed
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import (
    Flat,
    TaskVector,
    active,
    flatten,
    flatten_base,
    normalized,
    number,
    numbers,
    result_like,
    row_length,
)
from evomerge.operators.kernels.masks import mask_key, uniform
from evomerge.operators.kernels.selection import kth_largest_magnitude
from evomerge.operators.kernels.thinning import Sparsify
from evomerge.operators.metadata import Resolved


def breadcrumbs(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ Σ w_i τ̂_i, where τ̂_i has neither the largest nor the smallest entries of τ_i.

    Davari and Belilovsky 2024, arXiv:2312.06795. Of n entries (of a tensor, or of a row as in the released code) the
    int(γ·n) largest are dropped and the next int(ρ·n) kept; where fewer than ρ·n are left, fewer of the largest are
    dropped (mergekit's rule). `rescale: l1` restores the L1 norm. Deviations: entries as large as the last one on
    either side of the band are kept too; with γ = 0 nothing large is dropped, where mergekit then drops everything.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat, origin, keep, row = _banded(tensors, base, params, context)
    out = result_like(tensors[0], context)
    order = active(context, numbers(params, "weight"), numbers(params, "density"), numbers(params, "top"))
    factors = l1_factors(flat, origin, params, order, keep, multiple=row)
    return _linear(flat, origin, params, context, keep, factors, row, out).view(tensors[0].shape)


def breadcrumbs_ties(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ·merge(elect(τ̂_i)) with τ̂_i as in `breadcrumbs` and the election of `ties`.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat, origin, keep, row = _banded(tensors, base, params, context)
    order = active(context, numbers(params, "weight"), numbers(params, "density"), numbers(params, "top"))
    out = result_like(tensors[0], context)
    factors = l1_factors(flat, origin, params, order, keep, multiple=row)
    return elected(flat, origin, params, order, keep, out, factors=factors, multiple=row).view(tensors[0].shape)


def della_linear(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ Σ w_i τ̂_i, where larger entries of τ_i are more likely to be kept in τ̂_i.

    Deep et al. 2024, arXiv:2406.11617 (MAGPRUNE). In each row (last dimension) the j-th smallest of n entries, from
    j = 0, is kept with probability p = ρ - ε + 2ε·j/(n - 1), and multiplied by 1/p (`inv_keep`, the paper), by
    ‖τ_i‖₁/‖kept‖₁ of the tensor (`l1`, mergekit), or by 1 (`none`). Equal magnitudes rank by position. A row of one
    entry has p = ρ. Deviation: where ρ ± ε would leave [0, 1], ε is made smaller instead of an error, so that any ρ
    and ε can be searched; every row keeps a share ρ on average.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat, origin, drop, factors, row = _by_chance(tensors, base, params, context)
    out = result_like(tensors[0], context)
    return _linear(flat, origin, params, context, drop, factors, row, out).view(tensors[0].shape)


def della(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ·merge(elect(τ̂_i)) with τ̂_i as in `della_linear` and the election of `ties`.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat, origin, drop, factors, row = _by_chance(tensors, base, params, context)
    order = active(context, numbers(params, "weight"), numbers(params, "density"), numbers(params, "epsilon"))
    out = result_like(tensors[0], context)
    return elected(flat, origin, params, order, drop, out, factors=factors, multiple=row).view(tensors[0].shape)


def _linear(
    flat: Sequence[Flat],
    origin: Flat,
    params: Mapping[str, Resolved],
    context: Context,
    sparsify: Sparsify,
    factors: Mapping[int, float] | None,
    row: int,
    out: Tensor,
) -> Tensor:
    """Write to `out` θ_0 + λ Σ w_i·factor_i·τ̂_i."""
    weights = numbers(params, "weight")
    if params["normalize"]:
        weights = normalized(weights)
    scaled = [number(params, "scale") * weight for weight in weights]
    order = active(context, scaled, numbers(params, "density"))
    coefficients = {index: scaled[index] * (1.0 if factors is None else factors[index]) for index in order}
    return summed(flat, origin, coefficients, sparsify, out, multiple=row)


def _banded(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> tuple[list[Flat], Flat, Sparsify, int]:
    """Return flat inputs and the function that keeps a band of magnitudes."""
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    densities, tops = numbers(params, "density"), numbers(params, "top")
    by_row = params["scope"] == "row"
    row = row_length(tensors[0]) if by_row else 1
    limits: dict[int, tuple[float, float]] = {}

    def keep(index: int, delta: Tensor, start: int) -> Tensor:  # noqa: ARG001  same form as a random drop
        first, last = band(row if by_row else origin.numel(), densities[index], tops[index])
        if by_row:
            matrix = delta.view(-1, row)
            size = matrix.abs()
            low, high = _of_rows(size, last), _of_rows(size, first)
            return matrix.masked_fill_((size < low) | (size > high), 0.0).view(-1)
        if index not in limits:
            whole = TaskVector(flat[index], origin)[:]
            limits[index] = kth_largest_magnitude(whole, last), kth_largest_magnitude(whole, first)
        low_limit, high_limit = limits[index]
        size = delta.abs()
        return delta.masked_fill_((size < low_limit) | (size > high_limit), 0.0)

    return flat, origin, keep, row


def band(count: int, density: float, top: float) -> tuple[int, int]:
    """Return the first and last rank that is kept of `count` magnitudes, rank 1 being the largest; at least one."""
    kept = min(count, max(1, int(density * count)))
    dropped = min(int(top * count), count - kept)
    return dropped + 1, dropped + kept


def _of_rows(size: Tensor, rank: int) -> Tensor:
    """Return the rank-th largest of each row, shape (rows, 1)."""
    return size.kthvalue(size.shape[1] - rank + 1, dim=1, keepdim=True).values


def _by_chance(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> tuple[list[Flat], Flat, Sparsify, dict[int, float], int]:
    """Return flat inputs, the function that drops entries by chance, each source's factor, and the row's length."""
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    densities, windows = numbers(params, "density"), numbers(params, "epsilon")
    order = active(context, numbers(params, "weight"), densities)
    keys = {index: mask_key(context.seed, context.name, context.source_ids[index]) for index in order}
    row, inverse = row_length(tensors[0]), params["rescale"] == "inv_keep"

    def drop(index: int, delta: Tensor, start: int) -> Tensor:
        if densities[index] >= 1:
            return delta
        chance = keep_probability(delta.view(-1, row), densities[index], windows[index]).view(-1)
        drawn = uniform(delta.numel(), keys[index], offset=start, device=delta.device)
        delta.mul_(drawn < chance)
        return delta.div_(chance.clamp_min_(torch.finfo(torch.float64).tiny)) if inverse else delta

    factors = dict.fromkeys(order, 1.0)
    if params["rescale"] == "l1":
        factors = {index: l1_factor(flat[index], origin, index, drop, row) for index in order}
    return flat, origin, drop, factors, row


def keep_probability(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Return the probability with which each entry is kept, by the rank of its magnitude in its row.

    Args:
        rows: float32 of shape (rows, columns), columns > 0.
        density: ρ, the mean probability, in (0, 1].
        epsilon: ε, half of the window, >= 0.

    Returns:
        float64 of the same shape.
    """
    columns = rows.shape[1]
    if columns == 1:
        return torch.full(rows.shape, density, dtype=torch.float64, device=rows.device)
    window = min(epsilon, density, 1.0 - density)
    chances = torch.linspace(density - window, density + window, columns, dtype=torch.float64, device=rows.device)
    order = rows.abs().argsort(dim=1, stable=True)
    return torch.empty(rows.shape, dtype=torch.float64, device=rows.device).scatter_(
        1, order, chances.expand(rows.shape)
    )
