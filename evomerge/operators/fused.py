"""Task vectors weighted by how much they changed: VaRM and SCE."""

from __future__ import annotations

from evomerge.operators.metadata import Invariant, OperatorSpec
from evomerge.operators.parameters import choice, density, non_negative, scale

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
        choice(
            "statistic",
            ("square", "abs"),
            "what measures the change: the mean square of the differences (the paper), or their mean size",
        ),
        non_negative(
            "power",
            1.0,
            "exponent of the statistic: 0 weights all that changed alike, a large one takes the most changed",
            (0.0, 2.0),
        ),
        choice(
            "scope",
            ("tensor", "element"),
            "where the change is measured: over the tensor (the paper), or entry by entry",
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
        density(
            1.0,
            "share of entries selected, of those in which the sources differ (mergekit's select_topk)",
            low=0.05,
            per_source=False,
        ),
        choice(
            "mask_scope",
            ("all", "coefficient"),
            "whether other entries are 0 (mergekit), or only do not count in the weights (the released code)",
        ),
        scale((0.3, 1.5)),
    ),
    base="required",
    scope="tensor",
    invariants=_LAWS,
)

SPECS = (VARM, SCE)
