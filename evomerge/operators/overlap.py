"""Sparse task vectors merged by how many of them changed an entry: RAM and RAM+."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

_PAPER = "Reinforced agent merging, arXiv:2601.13572"
_EPSILON = Parameter(
    name="epsilon",
    default=1e-5,
    low=0.0,
    search=(1e-7, 1e-3),
    scale="log",
    summary="size above which a difference counts as a change (absolute, as in mergekit)",
)

RAM = OperatorSpec(
    name="ram",
    family="overlap",
    summary="Mean over the sources that changed an entry; a change made by one source alone is kept whole.",
    paper=_PAPER,
    kernel="evomerge.operators.kernels.overlap:ram",
    parameters=(_EPSILON,),
    base="required",
    invariants=("permutation", "translation", "idempotent"),
)

RAMPLUS = OperatorSpec(
    name="ramplus",
    family="overlap",
    summary="As ram, with changes made by one source alone enlarged by how much of it is shared.",
    paper=f"{_PAPER}, tensor by tensor (mergekit's ramplus_tl)",
    kernel="evomerge.operators.kernels.overlap:ramplus",
    parameters=(
        _EPSILON,
        Parameter(
            name="r", default=0.1, low=0.0, search=(0.0, 1.0), summary="how much is added per unit of shared/unique"
        ),
        Parameter(name="alpha", default=0.2, low=0.0, search=(0.0, 1.0), summary="largest shared/unique that counts"),
    ),
    base="required",
    scope="tensor",
    invariants=("permutation", "translation", "idempotent"),
)

SPECS = (RAM, RAMPLUS)
