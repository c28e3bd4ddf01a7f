"""Blends along the arc between two tensors.

Legend: a, b the two tensors as vectors, φ the angle between them, t the position on the arc.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import Vector, flatten, flatten_base, number, result_like, spans
from evomerge.operators.metadata import Resolved

SMALLEST_SINE = 1e-6
"""Below this sin φ the arc is not defined well enough (opposite tensors) or is the chord (equal
directions)."""


def angle(a: Vector, b: Vector) -> float | None:
    """Return the angle in radians between two vectors, in float64, or None if one of them is zero.

    2·atan2(|â - b̂|, |â + b̂|) keeps its relative precision for small angles, where arccos of the dot product
    has none: models tuned from one base differ by about 0.01 rad.

    Args:
        a: one vector.
        b: another of that length.
    """
    norm_a, norm_b = _norm(a), _norm(b)
    if norm_a == 0 or norm_b == 0:
        return None
    apart = together = 0.0
    for start, stop in spans(a.numel(), a.device):
        unit_a = a[start:stop].double() / norm_a
        unit_b = b[start:stop].double() / norm_b
        apart += float((unit_a - unit_b).square().sum())
        together += float((unit_a + unit_b).square().sum())
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _norm(vector: Vector) -> float:
    total = 0.0
    for start, stop in spans(vector.numel(), vector.device):
        total += float(vector[start:stop].double().square().sum())
    return math.sqrt(total)


def coefficients(a: Vector, b: Vector, t: float, *, straight: float = 1.0) -> tuple[float, float]:
    """Return (c_a, c_b) so that c_a·a + c_b·b is the point at `t` on the arc from a to b.

    Linear interpolation (1 - t, t) stands in where a vector is zero or sin φ < 1e-6: there the arc is the
    chord to 12 digits, or, between opposite tensors, is not unique, and t = 1/2 gives about 0.

    Args:
        a: one vector.
        b: another of that length.
        t: 0 to 1.
        straight: |cos φ| beyond which the interpolation is linear too.
    """
    phi = angle(a, b)
    if phi is None or not math.sin(phi) >= SMALLEST_SINE or abs(math.cos(phi)) > straight:
        return 1.0 - t, t
    return math.sin((1.0 - t) * phi) / math.sin(phi), math.sin(t * phi) / math.sin(phi)


def slerp(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return sin((1-t)φ)/sin φ · a + sin(tφ)/sin φ · b with a the base and b the source (Shoemake 1985).

    The angle is that of the flattened tensors; a and b keep their lengths. Deviation from mergekit and
    FusionBench: they interpolate linearly wherever |cos φ| > 0.9995, which two models tuned from one base
    nearly always satisfy; here the arc is followed, unless `straight` sets their limit. The difference is at
    most 1.3e-4 of the tensor's length at that limit, φ²/8 in general.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    other = flatten(tensors, context)[0]
    origin = flatten_base(base, tensors[0], context)
    of_base, of_other = coefficients(origin, other, number(params, "t"), straight=number(params, "straight"))
    out = result_like(tensors[0], context)
    for start, stop in spans(out.numel(), out.device):
        out[start:stop] = (origin[start:stop] * of_base).add_(other[start:stop], alpha=of_other)
    return out.view(tensors[0].shape)
