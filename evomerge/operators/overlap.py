"""Sparse task vectors merged by how many of them changed an entry: RAM and RAM+."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec
from evomerge.operators.parameters import non_negative

_PAPER = "Reinforced agent merging, arXiv:2601.13572"
_EPSILON = non_negative(
    "epsilon",
    1e-5,
    "size above which a difference counts as a change (absolute, as in mergekit)",
    (1e-7, 1e-3),
    scale="log",
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
        non_negative("r", 0.1, "how much is added per unit of shared/unique", (0.0, 1.0)),
        non_negative("alpha", 0.2, "largest shared/unique that counts", (0.0, 1.0)),
    ),
    base="required",
    scope="tensor",
    invariants=("permutation", "translation", "idempotent"),
)

SPECS = (RAM, RAMPLUS)
