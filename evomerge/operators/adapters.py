"""Merges of LoRA adapters factor by factor: Evo-Merging."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

EVO_MERGING = OperatorSpec(
    name="evo_merging",
    family="adapters",
    summary="Sums the factors of LoRA adapters, the first ones sparse: (Σ β_i B_i)(Σ β_i S(A_i)).",
    paper="Evo-Merging, black-box model merging, arXiv:2509.12951",
    kernel="evomerge.operators.kernels.adapters:evo_merging",
    parameters=(
        Parameter(
            name="weight",
            default=1.0,
            search=(-1.5, 1.5),
            per_source=True,
            summary="β, of both factors of an adapter; the opposite of all of them gives the same model",
        ),
        Parameter(
            name="density",
            default=1.0,
            low=0.0,
            high=1.0,
            search=(0.0, 1.0),
            per_source=True,
            summary="α, the share of A's entries kept, the largest in magnitude",
        ),
    ),
    base="required",
    scope="tensor",
    adapters=True,
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent", "single"),
)

SPECS = (EVO_MERGING,)
