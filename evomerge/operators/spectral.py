"""Merges in the singular vectors of task vectors: TSV-M, Iso-C and Iso-CTS, STAR, KnOTS."""

from __future__ import annotations

from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter
from evomerge.operators.sparsified import ZERO_SIGN, density, normalize, scale, weight

LINEAR_LAWS: tuple[Invariant, ...] = (
    "permutation",
    "scale",
    "task_scale",
    "translation",
    "neutral_weight",
    "idempotent",
)
"""What every method of the family obeys."""


def others(default: str) -> Parameter:
    """Return what becomes of tensors that are no matrices: norms, biases, embeddings and the head."""
    return Parameter(
        name="others",
        kind="choice",
        default=default,
        choices=("mean", "base"),
        summary="what norms, biases, embeddings and the head become: λ times the mean of the w_i τ_i, or the base's",
    )


def weight_on_request(summary: str) -> Parameter:
    """Return a weight that is not searched unless asked for."""
    return Parameter(name="weight", default=1.0, per_source=True, summary=summary)


def rank(summary: str) -> Parameter:
    """Return the directions kept of each source, relative to an equal share."""
    return Parameter(name="rank", default=1.0, low=0.0, low_open=True, search=(0.25, 2.0), summary=summary)


_WEIGHT = weight_on_request(
    "coefficient of each task vector; not searched unless asked, since unequal weights cost an SVD each"
)
_RANK = rank("directions kept of each source, in units of min(m, n)/N")

TSV_M = OperatorSpec(
    name="tsv_m",
    family="spectral",
    summary="Stacks the leading singular directions of all sources and makes them orthogonal to each other.",
    paper="Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081",
    kernel="evomerge.operators.kernels.spectral:tsv_m",
    parameters=(weight(), _RANK, scale((0.1, 3.0)), others("mean")),
    base="required",
    scope="tensor",
    invariants=(*LINEAR_LAWS, "single"),
)

TSV_OUTLIER = OperatorSpec(
    name="tsv_outlier",
    family="spectral",
    summary="TSV-M with each source weighted by the mass of its outliers; after R-TSVM, which it is not verified "
    "against.",
    paper="own definition; the idea is that of R-TSVM, arXiv:2502.06876, whose formulas could not be read",
    kernel="evomerge.operators.kernels.spectral:tsv_outlier",
    parameters=(
        weight(),
        Parameter(
            name="kappa",
            default=3.0,
            low=0.0,
            search=(2.0, 4.0),
            summary="κ: an outlier is larger than the mean magnitude by more than κ standard deviations",
        ),
        _RANK,
        scale((0.1, 3.0)),
        others("mean"),
    ),
    base="required",
    scope="tensor",
    invariants=(*LINEAR_LAWS, "single"),
)

ISO_C = OperatorSpec(
    name="iso_c",
    family="spectral",
    summary="Gives all singular values of the summed task vectors their mean.",
    paper="Marczak et al. 2025, No task left behind, arXiv:2502.04959",
    kernel="evomerge.operators.kernels.spectral:iso_c",
    parameters=(_WEIGHT, scale((0.1, 3.0)), others("mean")),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

ISO_CTS = OperatorSpec(
    name="iso_cts",
    family="spectral",
    summary="Iso-C over common directions and, in the remaining slots, leading directions of single sources.",
    paper="Marczak et al. 2025, No task left behind, arXiv:2502.04959",
    kernel="evomerge.operators.kernels.spectral:iso_cts",
    parameters=(
        _WEIGHT,
        Parameter(
            name="common",
            default=0.8,
            low=0.0,
            high=1.0,
            search=(0.3, 1.0),
            summary="share of the slots for common directions",
        ),
        scale((0.1, 3.0)),
        others("mean"),
    ),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

STAR = OperatorSpec(
    name="star",
    family="spectral",
    summary="Keeps the leading singular directions of each task vector, restores its nuclear norm, and averages.",
    paper="Lee et al. 2025, STAR: spectral truncation and rescale, arXiv:2502.10339",
    kernel="evomerge.operators.kernels.spectral:star",
    parameters=(
        weight(),
        Parameter(
            name="eta",
            default=0.4,
            low=0.0,
            low_open=True,
            high=1.0,
            search=(0.2, 0.8),
            summary="η, the share of the sum of singular values that is kept",
        ),
        scale((0.3, 1.5)),
        others("mean"),
    ),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

KNOTS = OperatorSpec(
    name="knots",
    family="spectral",
    summary="Merges the sources in the left singular directions that they share, by TIES or linearly.",
    paper="Stoica et al. 2025, Model merging with SVD to tie the KnOTS, arXiv:2410.19735",
    kernel="evomerge.operators.kernels.spectral:knots",
    parameters=(
        weight(),
        Parameter(
            name="inner",
            kind="choice",
            default="ties",
            choices=("ties", "linear"),
            summary="how the aligned parts merge; linear is task arithmetic",
        ),
        density(0.2, "share of the aligned entries kept, the largest in magnitude (ties)"),
        scale((0.3, 1.5)),
        normalize(default=True, summary="weighted mean (ties: over those that agree), not the weighted sum"),
        ZERO_SIGN,
        others("mean"),
    ),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

SPECS = (TSV_M, TSV_OUTLIER, ISO_C, ISO_CTS, STAR, KNOTS)
