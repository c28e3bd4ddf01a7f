"""Sums of models and of task vectors."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec
from evomerge.operators.parameters import normalize_sum, scale, weight

LINEAR = OperatorSpec(
    name="linear",
    family="weighted",
    summary="Weighted average of whole models: Σ w_i θ_i / Σ w_i.",
    paper="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
    kernel="evomerge.operators.kernels.weighted:linear",
    parameters=(weight("share of each source", search=(0.0, 1.0)), normalize_sum(default=True)),
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
        weight("coefficient of each task vector; a negative one subtracts the skill"),
        scale(None),
        normalize_sum(default=False),
    ),
    base="required",
    invariants=(*TASK_LAWS, "single"),
)

SPECS = (LINEAR, TASK_ARITHMETIC)
