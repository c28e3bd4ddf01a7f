"""Task vectors weighted by scores of their parts: of entries (PCB-Merging), of columns (WIDEN)."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec, Parameter
from evomerge.operators.parameters import choice, density, non_negative, scale, share, weight

PCB = OperatorSpec(
    name="pcb",
    family="scored",
    summary="Keeps the entries that score best within their source and agree with the others; their weighted mean.",
    paper="Du et al. 2024, Parameter competition balancing, arXiv:2410.02396",
    kernel="evomerge.operators.kernels.competition:pcb",
    parameters=(
        weight(
            "coefficient of each task vector; a source of weight 0 takes no part in the competition", search=(0.5, 2.0)
        ),
        density(
            0.1,
            "share of entries of each source kept, those with the best scores",
            low=0.05,
            high=0.5,
            per_source=False,
        ),
        scale(None),
        Parameter(
            name="gain",
            default=0.01,
            low=0.0,
            low_open=True,
            high=100.0,
            search=(0.01, 10.0),
            scale="log",
            summary="steepness of agreement: a small one rewards strong agreement (the released code), a large one any",
        ),
        share("clip", 1e-4, "share of largest and of smallest entries clipped", high=0.49),
        choice(
            "scope", ("tensor", "global"), "where entries compete: in each tensor, or in the whole model (the paper)"
        ),
    ),
    base="required",
    scope="model",
    invariants=TASK_LAWS,
)

WIDEN = OperatorSpec(
    name="widen",
    family="scored",
    summary="Weights each column of each task vector by how far its length and direction moved.",
    paper="Yu et al. 2024, Extend model merging from fine-tuned to pre-trained (WIDEN), arXiv:2408.03092",
    kernel="evomerge.operators.kernels.widen:widen",
    parameters=(
        non_negative("t", 1.0, "a column is important above this multiple of the mean rank; at 2 none is", (0.0, 2.0)),
        Parameter(name="s", default=1.0, search=(0.5, 1.5), summary="score of an important column"),
        choice(
            "ties", ("mean", "position"), "rank of equal columns: the mean of theirs, or by place (the released code)"
        ),
    ),
    base="required",
    scope="tensor",
    invariants=("permutation", "scale", "idempotent", "single"),
)

SPECS = (PCB, WIDEN)
