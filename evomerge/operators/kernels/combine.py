"""How thinned-out task vectors come together: summed, or summed where they agree with an elected sign.

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after some entries were dropped, w_i weight, λ scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.inputs import Flat, number, numbers, spans
from evomerge.operators.kernels.votes import Votes
from evomerge.operators.metadata import Resolved

Sparsify = Callable[[int, Tensor, int], Tensor]
"""(source index, span of τ that may be overwritten, where the span starts) to the span of τ̂."""


def summed(
    flat: Sequence[Flat],
    origin: Flat,
    coefficients: Mapping[int, float],
    sparsify: Sparsify,
    out: Tensor,
    *,
    multiple: int = 1,
) -> Tensor:
    """Write θ_0 + Σ c_i τ̂_i to `out`, span by span; spans are a whole number of `multiple` elements."""
    for start, stop in spans(out.numel(), out.device, multiple):
        root = origin[start:stop]
        if not coefficients:
            out[start:stop] = root
            continue
        total = torch.zeros_like(root)
        for index, coefficient in coefficients.items():
            total.add_(sparsify(index, flat[index][start:stop] - root, start), alpha=coefficient)
        out[start:stop] = total.add_(root)
    return out


def elected(
    flat: Sequence[Flat],
    origin: Flat,
    params: Mapping[str, Resolved],
    order: Sequence[int],
    sparsify: Sparsify,
    out: Tensor,
    *,
    factors: Mapping[int, float] | None = None,
    multiple: int = 1,
) -> Tensor:
    """Write θ_0 + λ·merge(elect(τ̂_i)) to `out`, span by span; spans are a whole number of `multiple` elements."""
    weights, scale = numbers(params, "weight"), number(params, "scale")
    for start, stop in spans(out.numel(), out.device, multiple):
        root = origin[start:stop]
        if scale == 0 or not order:
            out[start:stop] = root
            continue
        votes = Votes(root, mean=bool(params["normalize"]))
        for index in order:
            delta = sparsify(index, flat[index][start:stop] - root, start)
            votes.add(delta, weights[index], 1.0 if factors is None else factors[index])
        out[start:stop] = torch.add(root, votes.merge(str(params["zero_sign"])), alpha=scale)
    return out


def l1_factor(flat: Flat, origin: Flat, index: int, sparsify: Sparsify, multiple: int = 1) -> float:
    """Return ‖τ‖₁ / ‖τ̂‖₁, summed in float64; 1 where nothing was kept."""
    before = after = 0.0
    for start, stop in spans(flat.numel(), flat.device, multiple):
        delta = flat[start:stop] - origin[start:stop]
        before += float(delta.abs().sum(dtype=torch.float64))
        after += float(sparsify(index, delta, start).abs().sum(dtype=torch.float64))
    return before / after if after > 0 else 1.0
