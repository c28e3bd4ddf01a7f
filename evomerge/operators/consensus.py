"""The sum of task vectors, masked by where single tasks agree with it: TALL-masks and Consensus Merging."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.operators.parameters import flag, non_negative, scale

_PAPER = "Wang et al. 2024, Localizing task information (TALL-masks), arXiv:2405.07813"
_THRESHOLD = non_negative(
    "mask_threshold",
    0.4,
    "λ_i: a source's mask keeps an entry larger than this share of what the others add to it",
    (0.1, 1.0),
    per_source=True,
)

TALL_MASK = OperatorSpec(
    name="tall_mask",
    family="consensus",
    summary="The sum of task vectors where the masks of the sources to be retrieved keep it.",
    paper=_PAPER,
    kernel="evomerge.operators.kernels.consensus:tall_mask",
    parameters=(
        _THRESHOLD,
        flag(
            "retrieve",
            "whether a source's mask counts: true for one alone gives the paper's model for that task",
            per_source=True,
        ),
        scale((0.0, 1.5)),
    ),
    base="required",
    invariants=("permutation", "scale", "task_scale", "translation", "idempotent", "single"),
)

CONSENSUS = OperatorSpec(
    name="consensus",
    family="consensus",
    summary="The sum of task vectors where the masks of at least k sources keep it.",
    paper=_PAPER,
    kernel="evomerge.operators.kernels.consensus:consensus",
    parameters=(
        _THRESHOLD,
        Parameter(
            name="k",
            kind="int",
            default=2,
            low=0,
            search=(0, 2),
            summary="masks that must agree: 0 is task arithmetic, 1 drops what none uses, 2 what one alone uses",
        ),
        scale((0.0, 1.5)),
    ),
    base="required",
    invariants=("permutation", "scale", "task_scale", "translation", "idempotent"),
)

SPECS = (TALL_MASK, CONSENSUS)
