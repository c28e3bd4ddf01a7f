"""Task vectors weighted by how much they changed: VaRM and SCE."""

from __future__ import annotations

from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter
from evomerge.operators.sparsified import scale

_LAWS: tuple[Invariant, ...] = (
    "permutation",
    "scale",
    "task_scale",
    "translation",
    "idempotent",
    "single",
    "identical",
)

VARM = OperatorSpec(
    name="varm",
    family="fused",
    summary="Average of the sources, each weighted by how much it changed the base in that tensor.",
    paper="Wan et al. 2024, FuseChat (VaRM), arXiv:2402.16107",
    kernel="evomerge.operators.kernels.fused:varm",
    parameters=(
        Parameter(
            name="statistic",
            kind="choice",
            default="square",
            choices=("square", "abs"),
            summary="what measures the change: the mean square of the differences (the paper), or their mean size",
        ),
        Parameter(
            name="power",
            default=1.0,
            low=0.0,
            search=(0.0, 2.0),
            summary="exponent of the statistic: 0 weights all that changed alike, a large one takes the most changed",
        ),
        Parameter(
            name="scope",
            kind="choice",
            default="tensor",
            choices=("tensor", "element"),
            summary="where the change is measured: over the tensor (the paper), or entry by entry",
        ),
    ),
    base="required",
    scope="tensor",
    invariants=_LAWS,
)

SCE = OperatorSpec(
    name="sce",
    family="fused",
    summary="Selects entries by their variance over the sources, weights sources by size, erases minority signs.",
    paper="Wan et al. 2024, FuseChat (SCE), arXiv:2408.07990",
    kernel="evomerge.operators.kernels.fused:sce",
    parameters=(
        Parameter(
            name="density",
            default=1.0,
            low=0.0,
            low_open=True,
            high=1.0,
            search=(0.05, 1.0),
            summary="share of entries selected, of those in which the sources differ (mergekit's select_topk)",
        ),
        Parameter(
            name="mask_scope",
            kind="choice",
            default="all",
            choices=("all", "coefficient"),
            summary="whether other entries are 0 (mergekit), or only do not count in the weights (the released code)",
        ),
        scale((0.3, 1.5)),
    ),
    base="required",
    scope="tensor",
    invariants=_LAWS,
)

SPECS = (VARM, SCE)
