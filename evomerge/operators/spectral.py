"""Merges in the singular vectors of task vectors: TSV-M, Iso-C and Iso-CTS, STAR, KnOTS."""

from __future__ import annotations

from functools import partial

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec
from evomerge.operators.parameters import (
    RESCALE,
    ZERO_SIGN,
    choice,
    density,
    flag,
    non_negative,
    others,
    rank,
    scale,
    share,
    weight,
)

SPECTRAL = partial(OperatorSpec, family="spectral", base="required", scope="tensor", invariants=TASK_LAWS)
"""A method that decomposes task vectors; each says what is otherwise."""

_WEIGHT = weight(
    "coefficient of each task vector; not searched unless asked, since unequal weights cost an SVD each", search=None
)
_NORMALIZE = flag("normalize", "weighted mean (ties: over those that agree), not the weighted sum")
_RANK = rank("directions kept of each source, in units of min(m, n)/N")

TSV_M = SPECTRAL(
    name="tsv_m",
    summary="Stacks the leading singular directions of all sources and makes them orthogonal to each other.",
    paper="Gargiulo et al. 2025, Task singular vectors, arXiv:2412.00081",
    kernel="evomerge.operators.kernels.spectral:tsv_m",
    parameters=(weight(), _RANK, scale((0.1, 3.0)), others("mean")),
    invariants=(*TASK_LAWS, "single"),
)

TSV_OUTLIER = SPECTRAL(
    name="tsv_outlier",
    summary="TSV-M with each source weighted by the mass of its outliers; after R-TSVM, which it is not verified "
    "against.",
    paper="own definition; the idea is that of R-TSVM, arXiv:2502.06876, whose formulas could not be read",
    kernel="evomerge.operators.kernels.spectral:tsv_outlier",
    parameters=(
        weight(),
        non_negative(
            "kappa",
            3.0,
            "κ: an outlier is larger than the mean magnitude by more than κ standard deviations",
            (2.0, 4.0),
        ),
        _RANK,
        scale((0.1, 3.0)),
        others("mean"),
    ),
    invariants=(*TASK_LAWS, "single"),
)

ISO_C = SPECTRAL(
    name="iso_c",
    summary="Gives all singular values of the summed task vectors their mean.",
    paper="Marczak et al. 2025, No task left behind, arXiv:2502.04959",
    kernel="evomerge.operators.kernels.spectral:iso_c",
    parameters=(_WEIGHT, scale((0.1, 3.0)), others("mean")),
)

ISO_CTS = SPECTRAL(
    name="iso_cts",
    summary="Iso-C over common directions and, in the remaining slots, leading directions of single sources.",
    paper="Marczak et al. 2025, No task left behind, arXiv:2502.04959",
    kernel="evomerge.operators.kernels.spectral:iso_cts",
    parameters=(
        _WEIGHT,
        share("common", 0.8, "share of the slots for common directions", (0.3, 1.0)),
        scale((0.1, 3.0)),
        others("mean"),
    ),
)

STAR = SPECTRAL(
    name="star",
    summary="Keeps the leading singular directions of each task vector, restores its nuclear norm, and averages.",
    paper="Lee et al. 2025, STAR: spectral truncation and rescale, arXiv:2502.10339",
    kernel="evomerge.operators.kernels.spectral:star",
    parameters=(
        weight(),
        share("eta", 0.4, "η, the share of the sum of singular values that is kept", (0.2, 0.8), low_open=True),
        scale((0.3, 1.5)),
        others("mean"),
    ),
)

KNOTS = SPECTRAL(
    name="knots",
    summary="Merges the sources in the left singular directions that they share, by TIES or linearly.",
    paper="Stoica et al. 2025, Model merging with SVD to tie the KnOTS, arXiv:2410.19735",
    kernel="evomerge.operators.kernels.spectral:knots",
    parameters=(
        weight(),
        choice("inner", ("ties", "linear"), "how the aligned parts merge; linear is task arithmetic"),
        density(0.2, "share of the aligned entries kept, the largest in magnitude (ties)"),
        scale((0.3, 1.5)),
        _NORMALIZE,
        ZERO_SIGN,
        others("mean"),
    ),
)

KNOTS_DARE = SPECTRAL(
    name="knots_dare",
    summary="As knots, with entries of the aligned parts dropped at random and the rest rescaled.",
    paper="Stoica et al. 2025, arXiv:2410.19735, with the drop of Yu et al. 2024, arXiv:2311.03099",
    kernel="evomerge.operators.kernels.spectral:knots_dare",
    parameters=(
        weight(),
        choice("inner", ("ties", "linear"), "how what is left merges: a sign is elected, or all is summed"),
        density(0.5, "share of the aligned entries kept at random, each with this probability"),
        RESCALE,
        scale((0.3, 1.5)),
        _NORMALIZE,
        ZERO_SIGN,
        others("mean"),
    ),
    random=True,
)

SPECS = (TSV_M, TSV_OUTLIER, ISO_C, ISO_CTS, STAR, KNOTS, KNOTS_DARE)
