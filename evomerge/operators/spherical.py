"""Blends along the arc between two models."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

SLERP = OperatorSpec(
    name="slerp",
    family="spherical",
    summary="Spherical interpolation from the base (t = 0) to the other source (t = 1), tensor by tensor.",
    paper="Shoemake 1985, Animating rotation with quaternion curves, doi:10.1145/325334.325242",
    kernel="evomerge.operators.kernels.spherical:slerp",
    parameters=(
        Parameter(
            name="t",
            default=0.5,
            low=0.0,
            high=1.0,
            search=(0.0, 1.0),
            summary="position on the arc: 0 is the base, 1 the other source",
        ),
    ),
    base="required",
    min_sources=1,
    max_sources=1,
    scope="tensor",
    invariants=("scale", "idempotent"),
)

SPECS = (SLERP,)
