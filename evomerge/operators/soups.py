"""Averages whose weights come from the training run, or from the angles of task vectors: MWA and model stock."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

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
        Parameter(
            name="weighting",
            kind="choice",
            default="loss_power",
            choices=("loss_power", "loss_exponential", "step_power"),
            summary="w ∝ metric^-ρ, w ∝ exp(-ρ (metric - smallest)/smallest), or w ∝ metric^ρ",
        ),
        Parameter(
            name="sharpness",
            default=1.0,
            low=0.0,
            search=(0.0, 10.0),
            summary="ρ: 0 is the plain average, a large one the best (or last) checkpoint",
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
        Parameter(
            name="scope",
            kind="choice",
            default="tensor",
            choices=("tensor", "row"),
            summary="whose angles are taken: of the whole tensor, or of each row (mergekit's filter_wise)",
        ),
        Parameter(
            name="clip",
            kind="bool",
            default=True,
            summary="stay at the base where the angles are obtuse on average; false goes beyond it (mergekit)",
        ),
    ),
    base="required",
    min_sources=2,
    scope="tensor",
    invariants=("permutation", "scale", "task_scale", "translation", "idempotent", "identical"),
)

SPECS = (MWA, MODEL_STOCK)
