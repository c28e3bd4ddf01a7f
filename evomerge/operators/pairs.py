"""What is taken over from one tuned model into the base: nearswap and Arcee fusion."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

NEARSWAP = OperatorSpec(
    name="nearswap",
    family="pairs",
    summary="Moves each weight of the base towards the other model by at most t.",
    paper="Alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card), as in mergekit",
    kernel="evomerge.operators.kernels.pairs:nearswap",
    parameters=(
        Parameter(
            name="t",
            default=1e-4,
            low=0.0,
            search=(1e-6, 1e-2),
            scale="log",
            summary="largest step of a weight: 0 is the base, one above every difference the other model",
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
        Parameter(
            name="spread",
            default=1.5,
            low=0.0,
            search=(0.0, 3.0),
            summary="how many interquartile ranges above the median an importance must be",
        ),
    ),
    base="required",
    max_sources=1,
    scope="tensor",
    invariants=("permutation", "idempotent"),
)

SPECS = (NEARSWAP, ARCEE_FUSION)
