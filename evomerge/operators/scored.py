"""Task vectors weighted by scores of their parts: of entries (PCB-Merging), of columns (WIDEN)."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.operators.sparsified import scale

PCB = OperatorSpec(
    name="pcb",
    family="scored",
    summary="Keeps the entries that score best within their source and agree with the others; their weighted mean.",
    paper="Du et al. 2024, Parameter competition balancing, arXiv:2410.02396",
    kernel="evomerge.operators.kernels.competition:pcb",
    parameters=(
        Parameter(
            name="weight",
            default=1.0,
            search=(0.5, 2.0),
            per_source=True,
            summary="coefficient of each task vector; a source of weight 0 takes no part in the competition",
        ),
        Parameter(
            name="density",
            default=0.1,
            low=0.0,
            low_open=True,
            high=1.0,
            search=(0.05, 0.5),
            summary="share of entries of each source kept, those with the best scores",
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
        Parameter(
            name="clip", default=1e-4, low=0.0, high=0.49, summary="share of largest and of smallest entries clipped"
        ),
    ),
    base="required",
    scope="tensor",
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent"),
)

WIDEN = OperatorSpec(
    name="widen",
    family="scored",
    summary="Weights each column of each task vector by how far its length and direction moved.",
    paper="Yu et al. 2024, Extend model merging from fine-tuned to pre-trained (WIDEN), arXiv:2408.03092",
    kernel="evomerge.operators.kernels.widen:widen",
    parameters=(
        Parameter(
            name="t",
            default=1.0,
            low=0.0,
            search=(0.0, 2.0),
            summary="a column is important above this multiple of the mean rank; at 2 none is",
        ),
        Parameter(name="s", default=1.0, search=(0.5, 1.5), summary="score of an important column"),
        Parameter(
            name="ties",
            kind="choice",
            default="mean",
            choices=("mean", "position"),
            summary="rank of equal columns: the mean of theirs, or by place (the released code)",
        ),
    ),
    base="required",
    scope="tensor",
    invariants=("permutation", "scale", "idempotent", "single"),
)

SPECS = (PCB, WIDEN)
