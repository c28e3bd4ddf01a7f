"""How thinned-out task vectors come together: summed, or summed where they agree with an elected sign.

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after some entries were dropped, w_i weight, λ scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.operators.kernels import cpu
from evomerge.operators.kernels.inputs import Flat, number, numbers, spans, total
from evomerge.operators.kernels.scratch import Scratch, accumulate
from evomerge.operators.kernels.thinning import Sparsify
from evomerge.operators.kernels.votes import Votes
from evomerge.operators.metadata import Resolved


def summed(
    flat: Sequence[Flat],
    origin: Flat | None,
    coefficients: Mapping[int, float],
    sparsify: Sparsify,
    out: Tensor,
    *,
    multiple: int = 1,
    finite: Callable[[], None] | None = None,
) -> Tensor:
    """Write θ_0 + Σ c_i τ̂_i to `out`, span by span; spans are a whole number of `multiple` elements.

    Without a base it is Σ c_i θ_i, of one source at least. `finite` is called where it is seen that all of it is.
    """
    if cpu.compiles(out, origin, (flat[index] for index in coefficients), sparsify):
        if cpu.write_sum(out, origin, flat, coefficients, sparsify) and finite is not None:
            finite()
        return out
    scratch = Scratch(out.device)
    for span in scratch.over(spans(out.numel(), out.device, multiple)):
        root = None if origin is None else origin.read(span, scratch)
        merged: Any = None
        for index, coefficient in coefficients.items():
            if root is None:
                values = flat[index].read(span, scratch)
            else:
                # τ_i first: adding θ_i and subtracting Σ c_i θ_0 afterwards would cancel badly.
                values = sparsify(index, flat[index].minus(root, span, scratch), span.start)
            merged = accumulate(merged, values, coefficient, scratch)
        if root is not None:
            merged = root if merged is None else merged.add_(root)
        out[span] = merged
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
    mean, zero_sign = bool(params["normalize"]), str(params["zero_sign"])
    if scale == 0 or not order:
        return out.copy_(origin.stored)
    factors = dict.fromkeys(order, 1.0) if factors is None else factors
    if cpu.compiles(out, origin, (flat[index] for index in order), sparsify):
        shares = {index: (weights[index], weights[index] * factors[index]) for index in order}
        cpu.write_election(out, origin, flat, shares, sparsify, scale=scale, zero_sign=zero_sign, mean=mean)
        return out
    scratch = Scratch(out.device)
    for span in scratch.over(spans(out.numel(), out.device, multiple)):
        root = origin.read(span, scratch)
        votes = Votes(mean=mean, scratch=scratch)
        for index in order:
            delta = sparsify(index, flat[index].minus(root, span, scratch), span.start)
            votes.add(delta, weights[index], factors[index])
        merged = votes.merge(zero_sign)
        out[span] = torch.add(root, merged, alpha=scale, out=merged)
    return out


def l1_factor(flat: Flat, origin: Flat, index: int, sparsify: Sparsify, multiple: int = 1) -> float:
    """Return ‖τ‖₁ / ‖τ̂‖₁; 1 where nothing was kept."""
    return _l1_factors({index: flat}, origin, sparsify, multiple)[index]


def _l1_factors(flat: Mapping[int, Flat], origin: Flat, sparsify: Sparsify, multiple: int) -> dict[int, float]:
    if cpu.compiles(origin.stored, origin, flat.values(), sparsify):
        norms = cpu.norms(origin, flat, sparsify)
    else:
        norms = _norms(flat, origin, sparsify, multiple)
    return {index: before / after if after > 0 else 1.0 for index, (before, after) in norms.items()}


def _norms(flat: Mapping[int, Flat], origin: Flat, sparsify: Sparsify, multiple: int) -> dict[int, tuple[float, float]]:
    """Return (‖τ‖₁, ‖τ̂‖₁) by source."""
    before, after = dict.fromkeys(flat, 0.0), dict.fromkeys(flat, 0.0)
    scratch = Scratch(origin.device)
    for span in scratch.over(spans(origin.numel(), origin.device, multiple)):
        root = origin.read(span, scratch)
        for index, vector in flat.items():
            # No method looks at signs before the votes, so magnitudes are thinned out as task vectors are.
            sizes = vector.minus(root, span, scratch).abs_()
            before[index] += total(sizes)
            after[index] += total(sparsify(index, sizes, span.start))
    return {index: (before[index], after[index]) for index in flat}


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
