"""RegMean: linear layers whose outputs are nearest to those of all sources.

Legend: W_i weight of source i as (outputs, inputs), G_i = E[x xᵀ] Gram matrix of its inputs, c_i its share, α factor of
the entries off the diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.errors import SourceError
from evomerge.operators.kernels.context import Context, Statistic
from evomerge.operators.kernels.importance import mean, measured
from evomerge.operators.kernels.inputs import active, flatten, normalized, number, numbers
from evomerge.operators.metadata import Resolved

_PRECISION = torch.finfo(torch.float32).eps
"""Gram matrices are stored as float32: what is smaller than this share of a matrix is rounding."""


def regmean(
    tensors: Sequence[Tensor],
    base: Tensor | None,  # noqa: ARG001  every kernel has this signature
    params: Mapping[str, Resolved],
    context: Context,
) -> Tensor:
    """Return (Σ c_i W_i G̃_i)(Σ c_i G̃_i)⁻¹, G̃_i = α G_i + (1 - α) diag(G_i) (Jin et al. 2023, arXiv:2212.09849, eq. 2).

    Computed in float64 as M̄ + (Σ c_i (W_i - M̄) G̃_i)(Σ c_i G̃_i)⁻¹ with the mean M̄ = Σ c_i W_i / Σ c_i, which is the same
    where the inverse exists. Where it does not (α = 1 and fewer tokens than inputs, or inputs that are always 0), the
    pseudo-inverse, after scaling to a unit diagonal, leaves at the mean what the inputs do not decide. A parameter that
    is no matrix, or of which a source has no Gram, is the mean.

    Raises:
        SourceError: for tensors or statistics that do not fit each other, or statistics that are not given.
    """
    flatten(tensors, context)  # refuses tensors that do not fit each other
    shares = normalized(numbers(params, "weight"))
    order = active(context, shares)
    found = measured(order, "gram", context)
    if found is None or tensors[0].dim() != 2 or tensors[0].numel() == 0:
        return mean(tensors, params, context)
    weights = [tensors[index].detach().double() for index in order]
    if context.inputs_first:
        weights = [weight.T for weight in weights]
    merged = torch.zeros_like(weights[0])
    for index, weight in zip(order, weights, strict=True):
        merged.add_(weight, alpha=shares[index])
    alpha = number(params, "alpha")
    total = torch.zeros(weights[0].shape[1], weights[0].shape[1], dtype=torch.float64, device=merged.device)
    pulled = torch.zeros_like(merged)
    for index, weight, item in zip(order, weights, found, strict=True):
        gram = _shrunk(item, alpha, total, context).mul_(shares[index])
        total += gram
        pulled.addmm_(weight - merged, gram)
    merged += _divided(pulled, total, alpha)
    return (merged.T if context.inputs_first else merged).to(context.dtype).contiguous()


def _shrunk(item: Statistic, alpha: float, like: Tensor, context: Context) -> Tensor:
    """Return G̃ as float64, in memory of its own."""
    if item.tensor.shape != like.shape:
        raise SourceError(
            f"{context.name}: its Gram matrix has shape {tuple(item.tensor.shape)}, expected {tuple(like.shape)}"
        )
    gram = item.tensor.to(torch.float64, copy=True)
    diagonal = gram.diagonal().clone()
    gram.mul_(alpha).diagonal().copy_(diagonal)
    return gram


def _divided(pulled: Tensor, total: Tensor, alpha: float) -> Tensor:
    """Return `pulled` times the (pseudo-)inverse of `total`."""
    scale = total.diagonal().clamp(min=0).rsqrt()
    scale.masked_fill_(torch.isinf(scale), 0.0)  # an input that is always 0 decides nothing
    unit = scale[:, None] * total * scale
    noise = len(total) * _PRECISION
    if 1 - alpha > noise:
        # The smallest eigenvalue is at least 1 - α, but for dead inputs, whose rows are 0 so far.
        unit.diagonal().masked_fill_(scale == 0, 1.0)
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not failed:
            solved: Tensor = torch.cholesky_solve((pulled * scale).T, factor).T
            return solved * scale
    values, vectors = torch.linalg.eigh(unit)
    inverse = torch.where(values > noise * values[-1].clamp(min=_PRECISION), 1 / values, torch.zeros_like(values))
    found: Tensor = ((pulled * scale) @ vectors * inverse) @ vectors.T
    return found * scale
