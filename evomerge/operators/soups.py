"""Averages whose weights come from the training run, or from the angles of task vectors: MWA and model stock."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.operators.parameters import choice, flag, non_negative

MWA = OperatorSpec(
    name="mwa",
    family="soups",
    summary="Average of checkpoints of one training run, weighted by a metric (loss or step) of each.",
    paper="after metrics-weighted averaging, arXiv:2504.18580; its map could not be verified, so families carry "
    "names of their own",
    kernel="evomerge.operators.kernels.soups:mwa",
    parameters=(
        Parameter(
            name="metric",
            default=1.0,
            low=0.0,
            low_open=True,
            per_source=True,
            summary="training loss of each checkpoint, or its step for `step_power`",
        ),
        choice(
            "weighting",
            ("loss_power", "loss_exponential", "step_power"),
            "w ∝ metric^-ρ, w ∝ exp(-ρ (metric - smallest)/smallest), or w ∝ metric^ρ",
        ),
        non_negative(
            "sharpness", 1.0, "ρ: 0 is the plain average, a large one the best (or last) checkpoint", (0.0, 10.0)
        ),
    ),
    base="ignored",
    invariants=("permutation", "scale", "translation", "idempotent", "single", "identical"),
)

MODEL_STOCK = OperatorSpec(
    name="model_stock",
    family="soups",
    summary="Moves from the base towards the mean of the sources, the further the smaller the angles between them.",
    paper="Jang et al. 2024, Model stock, arXiv:2403.19522",
    kernel="evomerge.operators.kernels.soups:model_stock",
    parameters=(
        choice(
            "scope",
            ("tensor", "row"),
            "whose angles are taken: of the whole tensor, or of each row (mergekit's filter_wise)",
        ),
        flag("clip", "stay at the base where the angles are obtuse on average; false goes beyond it (mergekit)"),
    ),
    base="required",
    min_sources=2,
    scope="tensor",
    invariants=("permutation", "scale", "task_scale", "translation", "idempotent", "identical"),
)

SPECS = (MWA, MODEL_STOCK)
