"""Blends along arcs: between two models, and means of several directions."""

from __future__ import annotations

from typing import Literal

from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter
from evomerge.operators.parameters import SOURCE_SHARE, choice, normalize_sum, share

SLERP = OperatorSpec(
    name="slerp",
    family="spherical",
    summary="Spherical interpolation from the base (t = 0) to the other source (t = 1), tensor by tensor.",
    paper="Shoemake 1985, Animating rotation with quaternion curves, doi:10.1145/325334.325242",
    kernel="evomerge.operators.kernels.spherical:slerp",
    parameters=(
        share("t", 0.5, "position on the arc: 0 is the base, 1 the other source", (0.0, 1.0)),
        share("straight", 1.0, "|cosine| beyond which the chord is followed instead of the arc (mergekit: 0.9995)"),
    ),
    base="required",
    min_sources=1,
    max_sources=1,
    scope="tensor",
    invariants=("scale", "idempotent"),
)

_SCOPE = choice(
    "scope",
    ("tensor", "row", "column"),
    "whose angle is taken: of the whole tensor, of each row, of each column",
)
_MERGEKIT = "mergekit (Goddard et al. 2024, arXiv:2403.13257)"
_MODELS: tuple[Invariant, ...] = ("permutation", "scale", "neutral_weight", "idempotent", "single", "identical")
_TASK_VECTORS: tuple[Invariant, ...] = (*_MODELS, "task_scale", "translation")


def _nuslerp(name: str, base: Literal["required", "ignored"], between: str) -> OperatorSpec:
    laws: tuple[Invariant, ...] = ("scale", "idempotent", "identical")
    return OperatorSpec(
        name=name,
        family="spherical",
        summary=f"The point on the arc between two {between} at the second one's share of the weights.",
        paper=f"NuSLERP of {_MERGEKIT}",
        kernel="evomerge.operators.kernels.directions:nuslerp",
        parameters=(SOURCE_SHARE, _SCOPE),
        base=base,
        min_sources=2,
        max_sources=2,
        scope="tensor",
        invariants=laws if base == "ignored" else (*laws, "task_scale", "translation"),
    )


def _multislerp(name: str, base: Literal["required", "ignored"], between: str) -> OperatorSpec:
    return OperatorSpec(
        name=name,
        family="spherical",
        summary=f"The weighted mean direction of {between} at their weighted mean length.",
        paper=f"Multi-SLERP of {_MERGEKIT}, in closed form",
        kernel="evomerge.operators.kernels.directions:multislerp",
        parameters=(SOURCE_SHARE, normalize_sum(default=True)),
        base=base,
        scope="tensor",
        invariants=_MODELS if base == "ignored" else _TASK_VECTORS,
    )


NUSLERP = _nuslerp("nuslerp", "ignored", "models")
TASK_NUSLERP = _nuslerp("task_nuslerp", "required", "task vectors")
MULTISLERP = _multislerp("multislerp", "ignored", "models")
TASK_MULTISLERP = _multislerp("task_multislerp", "required", "task vectors")
KARCHER = OperatorSpec(
    name="karcher",
    family="spherical",
    summary="The mean on the sphere of the sources' directions, at their weighted mean length.",
    paper="Karcher 1977, Riemannian center of mass, doi:10.1002/cpa.3160300502",
    kernel="evomerge.operators.kernels.directions:karcher",
    parameters=(
        SOURCE_SHARE,
        Parameter(name="iterations", kind="int", default=10, low=1, high=1000, summary="steps at most"),
        Parameter(
            name="tolerance",
            default=1e-5,
            low=0.0,
            low_open=True,
            high=0.1,
            scale="log",
            summary="length of a step, in radians, below which the iteration ends",
        ),
    ),
    base="ignored",
    scope="tensor",
    invariants=_MODELS,
)

SPECS = (SLERP, NUSLERP, TASK_NUSLERP, MULTISLERP, TASK_MULTISLERP, KARCHER)
