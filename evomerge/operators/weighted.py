"""Sums of models and of task vectors."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

LINEAR = OperatorSpec(
    name="linear",
    family="weighted",
    summary="Weighted average of whole models: Σ w_i θ_i / Σ w_i.",
    paper="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
    kernel="evomerge.operators.kernels.weighted:linear",
    parameters=(
        Parameter(
            name="weight",
            default=1.0,
            search=(0.0, 1.0),
            per_source=True,
            summary="share of each source",
        ),
        Parameter(
            name="normalize",
            kind="bool",
            default=True,
            summary="divide by the sum of the weights (a sum nearer to 0 than 1e-8 counts as 1)",
        ),
    ),
    base="ignored",
    invariants=("permutation", "scale", "translation", "neutral_weight", "idempotent", "single", "identical"),
)

TASK_ARITHMETIC = OperatorSpec(
    name="task_arithmetic",
    family="weighted",
    summary="The base plus a weighted sum of task vectors: θ_0 + λ Σ w_i (θ_i - θ_0).",
    paper="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089",
    kernel="evomerge.operators.kernels.weighted:task_arithmetic",
    parameters=(
        Parameter(
            name="weight",
            default=1.0,
            search=(0.0, 1.5),
            per_source=True,
            summary="coefficient of each task vector; a negative one subtracts the skill",
        ),
        Parameter(
            name="scale",
            default=1.0,
            summary="λ, a common factor; not searched unless asked, since the weights already span it",
        ),
        Parameter(
            name="normalize",
            kind="bool",
            default=False,
            summary="divide by the sum of the weights (a sum nearer to 0 than 1e-8 counts as 1)",
        ),
    ),
    base="required",
    invariants=(
        "permutation",
        "scale",
        "task_scale",
        "translation",
        "neutral_weight",
        "idempotent",
        "single",
    ),
)

SPECS = (LINEAR, TASK_ARITHMETIC)
