"""Sums of models and of task vectors.

Legend: θ_i source i, θ_0 base, τ_i = θ_i - θ_0 task vector, w_i weight, λ scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import (
    active,
    flatten,
    flatten_base,
    normalized,
    number,
    numbers,
    result_like,
    spans,
)
from evomerge.operators.kernels.scratch import Scratch, accumulate
from evomerge.operators.metadata import Resolved


def linear(
    tensors: Sequence[Tensor],
    base: Tensor | None,  # noqa: ARG001  every kernel has this signature
    params: Mapping[str, Resolved],
    context: Context,
) -> Tensor:
    """Return Σ w_i θ_i, divided by Σ w_i if `normalize` (Wortsman et al. 2022, arXiv:2203.05482).

    The weights are divided before the sum, in double precision, so that equal models give that model to the
    last bit or two. Where |Σ w_i| < 1e-8 the divisor is 1, as in mergekit; if no source has a weight, the
    result is 0.

    Raises:
        SourceError: for tensors that do not fit each other.
    """
    flat = flatten(tensors, context)
    weights = numbers(params, "weight")
    if params["normalize"]:
        weights = normalized(weights)
    order = active(context, weights)
    out = result_like(tensors[0], context)
    if not order:
        return out.zero_().view(tensors[0].shape)
    scratch = Scratch(out.device)
    first, *rest = order
    for span in scratch.over(spans(out.numel(), out.device)):
        total = accumulate(None, flat[first].read(span, scratch), weights[first], scratch)
        for index in rest:
            total = accumulate(total, flat[index].read(span, scratch), weights[index], scratch)
        out[span] = total
    return out.view(tensors[0].shape)


def task_arithmetic(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ Σ w_i τ_i (Ilharco et al. 2023, arXiv:2212.04089).

    Without any coefficient the result is the base bit by bit.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    flat = flatten(tensors, context)
    origin = flatten_base(base, tensors[0], context)
    weights = numbers(params, "weight")
    if params["normalize"]:
        weights = normalized(weights)
    scale = number(params, "scale")
    factors = [scale * weight for weight in weights]
    order = active(context, factors)
    out = result_like(tensors[0], context)
    scratch = Scratch(out.device)
    for span in scratch.over(spans(out.numel(), out.device)):
        root = origin.read(span, scratch)
        total: Tensor | None = None
        for index in order:
            # τ_i first: adding θ_i and subtracting Σ w_i θ_0 afterwards would cancel badly.
            total = accumulate(total, flat[index].minus(root, span, scratch), factors[index], scratch)
        out[span] = root if total is None else total.add_(root)
    return out.view(tensors[0].shape)
