"""Means of directions: NuSLERP along the arc, Multi-SLERP and Karcher means on the sphere.

Such a mean lies in the span of its inputs, so it is a linear combination whose coefficients follow from the inputs'
Gram matrix: one pass over the tensors for that (float64), one for the sum.

Legend: v_i input i (a model, or its task vector), x_i = v_i/|v_i|, w_i weight with Σ w_i = 1, G the Gram matrix of the
x_i, a the coefficients of a direction u = Σ a_i x_i.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import (
    Flat,
    TaskVector,
    Vector,
    active,
    flatten,
    flatten_base,
    normalized,
    number,
    numbers,
    result_like,
    spans,
)
from evomerge.operators.kernels.spherical import SMALLEST_SINE
from evomerge.operators.kernels.spherical import coefficients as arc_coefficients
from evomerge.operators.metadata import Resolved

Coefficients = NDArray[np.float64]
_SMALLEST_DIRECTION = 1e-12
"""A mean of unit vectors shorter than this has no direction: the inputs cancel."""


def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    params: Mapping[str, Resolved],
    context: Context,
) -> Tensor:
    """Return the point at t = w_2/(w_1 + w_2) on the arc between two models, or between their task vectors.

    mergekit's NuSLERP: of the whole tensor, or of each row or column by itself. Without a base the arc is between the
    models; with one between their task vectors, where angles say more (siblings are about 0.01 rad apart, their task
    vectors often near a right angle). |w_1 + w_2| < 1e-6 gives t = 1/2. Where a vector is 0 or sin φ < 1e-6 the
    mean is linear.

    Raises:
        SourceError: for tensors that do not fit each other.
    """
    flat, origin = _inputs(tensors, base, context)
    if len(flat) == 1:  # the other one has weight 0
        return _combined(flat, origin, (1.0,), tensors[0], context)
    first, second = numbers(params, "weight")
    t = second / (first + second) if abs(first + second) >= SMALLEST_SINE else 0.5
    if params["scope"] == "tensor" or tensors[0].dim() < 2:
        return _combined(flat, origin, arc_coefficients(flat[0], flat[1], t), tensors[0], context)
    shape = tensors[0].shape
    dim = -1 if params["scope"] == "row" else 0
    merged = _arcs(flat[0][:].view(shape), flat[1][:].view(shape), t, dim)
    return (merged if origin is None else merged.add_(origin[:].view(shape))).to(context.dtype)


def _arcs(a: Tensor, b: Tensor, t: float, dim: int) -> Tensor:
    """Return the point at t on the arc of each pair of vectors along a dimension."""
    norm_a = a.double().norm(dim=dim, keepdim=True)
    norm_b = b.double().norm(dim=dim, keepdim=True)
    both = (norm_a > 0) & (norm_b > 0)
    unit_a, unit_b = a / norm_a.where(both, torch.ones_like(norm_a)), b / norm_b.where(both, torch.ones_like(norm_b))
    apart = (unit_a - unit_b).norm(dim=dim, keepdim=True)
    together = (unit_a + unit_b).norm(dim=dim, keepdim=True)
    phi = 2 * torch.atan2(apart, together)
    sine = phi.sin()
    curved = both & (sine >= SMALLEST_SINE)
    safe = sine.where(curved, torch.ones_like(sine))
    of_a = ((1 - t) * phi).sin().div(safe).where(curved, torch.full_like(phi, 1 - t))
    of_b = (t * phi).sin().div(safe).where(curved, torch.full_like(phi, t))
    return (of_a * a + of_b * b).float()


def multislerp(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return the direction of Σ w_i x_i at the length Σ w_i |v_i|: mergekit's Multi-SLERP in closed form.

    mergekit steps from the weighted mean direction along a tangent that is 0 there, so the mean direction is its
    result (equal to 2e-10). Weights are divided by their sum if `normalize`. Where the directions cancel the mean is
    linear (mergekit refuses three or more such inputs).

    Raises:
        SourceError: for tensors that do not fit each other.
    """
    flat, origin = _inputs(tensors, base, context)
    weights = numbers(params, "weight")
    if params["normalize"]:
        weights = normalized(weights)
    order = active(context, weights)
    used = [flat[index] for index in order]
    shares = np.array([weights[index] for index in order])
    lengths, gram = _directions(used)
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    norm = math.sqrt(max(0.0, float(shares @ gram @ shares)))
    found = shares
    if norm > _SMALLEST_DIRECTION:
        found = shares * inverse * float(shares @ lengths) / norm
    return _combined(used, origin, tuple(found), tensors[0], context)


def karcher(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return the Karcher (Riemannian) mean of the directions on the sphere at the length Σ w_i |v_i|.

    Karcher 1977, doi:10.1002/cpa.3160300502, by the usual iteration u ← exp_u(Σ w_i log_u(x_i)) from the normalised
    mean, until the step is below `tolerance` or `iterations` are done. Inputs not longer than `tolerance` have no say
    in the direction but count in the length (mergekit's rule). Deviations from mergekit: weights are allowed, and the
    arithmetic is float64 in the inputs' span. Where the directions cancel, so that no mean is nearest, it is linear.

    Raises:
        SourceError: for tensors that do not fit each other.
    """
    flat, origin = _inputs(tensors, base, context)
    weights = normalized(numbers(params, "weight"))
    order = active(context, weights)
    used, shares = [flat[index] for index in order], np.array([weights[index] for index in order])
    lengths, gram = _directions(used)
    tolerance, iterations = number(params, "tolerance"), int(number(params, "iterations"))
    pointing = np.where(lengths > tolerance, shares, 0.0)
    found = shares
    start = pointing / (pointing.sum() or 1.0)
    norm = math.sqrt(max(0.0, float(start @ gram @ start)))
    if norm > _SMALLEST_DIRECTION:
        direction = karcher_direction(gram, start, start / norm, iterations=iterations, tolerance=tolerance)
        inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > tolerance)
        found = direction * inverse * float(shares @ lengths)
    return _combined(used, origin, tuple(found), tensors[0], context)


def karcher_direction(
    gram: NDArray[np.float64], shares: Coefficients, start: Coefficients, *, iterations: int, tolerance: float
) -> Coefficients:
    """Return the coefficients of the Karcher mean of unit vectors.

    Args:
        gram: of the unit vectors, shape (N, N).
        shares: weights, shape (N,), sum 1.
        start: coefficients of a unit vector, shape (N,).
        iterations: steps at most.
        tolerance: length of a step, in radians, below which it ends.
    """
    point = start
    for _ in range(iterations):
        cosines = np.clip(gram @ point, -1.0, 1.0)
        angles = np.arccos(cosines)
        sines = np.sin(angles)
        factors = shares * np.divide(angles, sines, out=np.ones_like(angles), where=sines > _SMALLEST_DIRECTION)
        tangent = factors - float(factors @ cosines) * point
        step = math.sqrt(max(0.0, float(tangent @ gram @ tangent)))
        if step < tolerance:
            break
        point = math.cos(step) * point + math.sin(step) / step * tangent
        point = point / math.sqrt(float(point @ gram @ point))
    return point


def _inputs(
    tensors: Sequence[Tensor], base: Tensor | None, context: Context
) -> tuple[list[Flat] | list[TaskVector], Flat | None]:
    """Return the vectors to be averaged, task vectors where there is a base."""
    flat = flatten(tensors, context)
    if base is None:
        return flat, None
    origin = flatten_base(base, tensors[0], context)
    return [TaskVector(vector, origin) for vector in flat], origin


def _directions(flat: Sequence[Vector]) -> tuple[Coefficients, NDArray[np.float64]]:
    """Return the lengths of vectors and the Gram matrix of their directions (0 for a vector of length 0)."""
    count = len(flat)
    dots = np.zeros((count, count))
    for start, stop in spans(flat[0].numel(), flat[0].device) if count else ():
        parts = torch.stack([vector[start:stop] for vector in flat]).double()
        dots += (parts @ parts.T).cpu().numpy()
    lengths = np.sqrt(np.diagonal(dots))
    products = np.outer(lengths, lengths)
    return lengths, np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)


def _combined(
    flat: Sequence[Vector], origin: Flat | None, coefficients: Sequence[float], like: Tensor, context: Context
) -> Tensor:
    """Return Σ c_i v_i, plus the base where there is one, in the shape of `like`."""
    out = result_like(like, context)
    for start, stop in spans(out.numel(), out.device):
        total = torch.zeros(stop - start, device=out.device)
        for vector, coefficient in zip(flat, coefficients, strict=True):
            total.add_(vector[start:stop], alpha=float(coefficient))
        out[start:stop] = total if origin is None else total.add_(origin[start:stop])
    return out.view(like.shape)
