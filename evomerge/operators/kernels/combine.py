"""How thinned-out task vectors come together: summed, or summed where they agree with an elected sign.

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after some entries were dropped, w_i weight, λ scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.inputs import Flat, number, numbers, spans, total
from evomerge.operators.kernels.scratch import Scratch, accumulate
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
    scratch = Scratch(out.device)
    for span in scratch.over(spans(out.numel(), out.device, multiple)):
        root = origin.read(span, scratch)
        merged: Tensor | None = None
        for index, coefficient in coefficients.items():
            delta = sparsify(index, flat[index].minus(root, span, scratch), span.start)
            merged = accumulate(merged, delta, coefficient, scratch)
        out[span] = root if merged is None else merged.add_(root)
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
    scratch = Scratch(out.device)
    for span in scratch.over(spans(out.numel(), out.device, multiple)):
        root = origin.read(span, scratch)
        if scale == 0 or not order:
            out[span] = root
            continue
        votes = Votes(mean=bool(params["normalize"]), scratch=scratch)
        for index in order:
            delta = sparsify(index, flat[index].minus(root, span, scratch), span.start)
            votes.add(delta, weights[index], 1.0 if factors is None else factors[index])
        merged = votes.merge(str(params["zero_sign"]))
        out[span] = torch.add(root, merged, alpha=scale, out=merged)
    return out


def l1_factor(flat: Flat, origin: Flat, index: int, sparsify: Sparsify, multiple: int = 1) -> float:
    """Return ‖τ‖₁ / ‖τ̂‖₁; 1 where nothing was kept."""
    return _l1_factors({index: flat}, origin, sparsify, multiple)[index]


def _l1_factors(flat: Mapping[int, Flat], origin: Flat, sparsify: Sparsify, multiple: int) -> dict[int, float]:
    before, after = dict.fromkeys(flat, 0.0), dict.fromkeys(flat, 0.0)
    scratch = Scratch(origin.device)
    for span in scratch.over(spans(origin.numel(), origin.device, multiple)):
        root = origin.read(span, scratch)
        for index, vector in flat.items():
            # No method looks at signs before the votes, so magnitudes are thinned out as task vectors are.
            sizes = vector.minus(root, span, scratch).abs_()
            before[index] += total(sizes)
            after[index] += total(sparsify(index, sizes, span.start))
    return {index: before[index] / after[index] if after[index] > 0 else 1.0 for index in flat}


def l1_factors(
    flat: Sequence[Flat],
    origin: Flat,
    params: Mapping[str, Resolved],
    order: Sequence[int],
    sparsify: Sparsify,
    *,
    multiple: int = 1,
) -> dict[int, float] | None:
    """Return `l1_factor` of each source where `rescale` is `l1`, else None."""
    if params["rescale"] != "l1":
        return None
    return _l1_factors({index: flat[index] for index in order}, origin, sparsify, multiple)
