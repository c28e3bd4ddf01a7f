"""Merges of LoRA adapters factor by factor: Evo-Merging."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec
from evomerge.operators.parameters import share, weight

EVO_MERGING = OperatorSpec(
    name="evo_merging",
    family="adapters",
    summary="Sums the factors of LoRA adapters, the first ones sparse: (Σ β_i B_i)(Σ β_i S(A_i)).",
    paper="Evo-Merging, black-box model merging, arXiv:2509.12951",
    kernel="evomerge.operators.kernels.adapters:evo_merging",
    parameters=(
        weight(
            "β, of both factors of an adapter; the opposite of all of them gives the same model", search=(-1.5, 1.5)
        ),
        share(
            "density", 1.0, "α, the share of A's entries kept, the largest in magnitude", (0.0, 1.0), per_source=True
        ),
    ),
    base="required",
    scope="tensor",
    adapters=True,
    invariants=(*TASK_LAWS, "single"),
)

SPECS = (EVO_MERGING,)
