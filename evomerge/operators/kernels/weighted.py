"""Sums of models and of task vectors.

Legend: θ_i source i, θ_0 base, τ_i = θ_i - θ_0 task vector, w_i weight, λ scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.operators.kernels.combine import summed
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import active, flatten, flatten_base, normalized, number, numbers, result_like
from evomerge.operators.kernels.thinning import Whole
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
    coefficients = {index: weights[index] for index in order}
    return summed(flat, None, coefficients, Whole(), out, finite=context.finite).view(tensors[0].shape)


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
    coefficients = {index: factors[index] for index in order}
    out = result_like(tensors[0], context)
    return summed(flat, origin, coefficients, Whole(), out, finite=context.finite).view(tensors[0].shape)
