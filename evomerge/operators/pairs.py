"""What is taken over from one tuned model into the base: nearswap and Arcee fusion."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec
from evomerge.operators.parameters import non_negative

NEARSWAP = OperatorSpec(
    name="nearswap",
    family="pairs",
    summary="Moves each weight of the base towards the other model by at most t.",
    paper="Alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card), as in mergekit",
    kernel="evomerge.operators.kernels.pairs:nearswap",
    parameters=(
        non_negative(
            "t",
            1e-4,
            "largest step of a weight: 0 is the base, one above every difference the other model",
            (1e-6, 1e-2),
            scale="log",
        ),
    ),
    base="required",
    max_sources=1,
    invariants=("permutation", "translation", "idempotent"),
)

ARCEE_FUSION = OperatorSpec(
    name="arcee_fusion",
    family="pairs",
    summary="Takes over the differences that stand out by size and by how much they change their row.",
    paper="Arcee Fusion of mergekit (Goddard et al. 2024, arXiv:2403.13257)",
    kernel="evomerge.operators.kernels.pairs:arcee_fusion",
    parameters=(
        non_negative("spread", 1.5, "how many interquartile ranges above the median an importance must be", (0.0, 3.0)),
    ),
    base="required",
    max_sources=1,
    scope="tensor",
    invariants=("permutation", "idempotent"),
)

SPECS = (NEARSWAP, ARCEE_FUSION)
