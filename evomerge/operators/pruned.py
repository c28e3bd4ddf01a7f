"""Task vectors pruned by the rank of each entry's magnitude: breadcrumbs and DELLA."""

from __future__ import annotations

from functools import partial

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec
from evomerge.operators.parameters import (
    RESCALE,
    TRIM_RESCALE,
    ZERO_SIGN,
    choice,
    density,
    normalize_agreeing,
    normalize_sum,
    scale,
    share,
    weight,
)

_PRUNED = partial(OperatorSpec, family="pruned", base="required", scope="tensor", invariants=TASK_LAWS)
_TOP = share(
    "top",
    0.01,
    "share of entries dropped as too large (mergekit's gamma); fewer where the density leaves no room",
    (0.0, 0.1),
    per_source=True,
)
_BAND = density(0.9, "share of entries kept, the largest below the dropped ones", low=0.05)
_SCOPE = choice(
    "scope",
    ("tensor", "row"),
    "where magnitudes are ranked: in each tensor (mergekit) or each row (the released code)",
)
_BREADCRUMBS = "Davari and Belilovsky 2024, Model breadcrumbs, arXiv:2312.06795"
_EPSILON = share(
    "epsilon",
    0.15,
    "half of the window of keep probabilities, density ± epsilon; smaller where that would leave [0, 1]",
    (0.0, 0.3),
    high=0.5,
    per_source=True,
)
_CHANCE = density(0.7, "mean share of entries kept at random")
_DELLA = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"

BREADCRUMBS = _PRUNED(
    name="breadcrumbs",
    summary="Drops the largest and the smallest entries of each task vector, and sums the rest.",
    paper=_BREADCRUMBS,
    kernel="evomerge.operators.kernels.pruned:breadcrumbs",
    parameters=(weight(), _BAND, _TOP, scale(None), normalize_sum(default=False), _SCOPE, TRIM_RESCALE),
)

BREADCRUMBS_TIES = _PRUNED(
    name="breadcrumbs_ties",
    summary="Drops the largest and the smallest entries, elects a sign, sums those that agree.",
    paper=f"{_BREADCRUMBS}, with the election of Yadav et al. 2023, arXiv:2306.01708",
    kernel="evomerge.operators.kernels.pruned:breadcrumbs_ties",
    parameters=(
        weight(),
        _BAND,
        _TOP,
        scale(None),
        normalize_agreeing(default=False),
        _SCOPE,
        TRIM_RESCALE,
        ZERO_SIGN,
    ),
)

DELLA_LINEAR = _PRUNED(
    name="della_linear",
    summary="Drops entries at random, small ones more often, rescales the rest, and sums.",
    paper=_DELLA,
    kernel="evomerge.operators.kernels.pruned:della_linear",
    parameters=(weight(), _CHANCE, _EPSILON, RESCALE, scale(None), normalize_sum(default=False)),
    random=True,
)

DELLA = _PRUNED(
    name="della",
    summary="Drops entries at random, small ones more often, rescales, elects a sign, averages those that agree.",
    paper=_DELLA,
    kernel="evomerge.operators.kernels.pruned:della",
    parameters=(
        weight(),
        _CHANCE,
        _EPSILON,
        RESCALE,
        scale((0.5, 1.5)),
        normalize_agreeing(default=True),
        ZERO_SIGN,
    ),
    random=True,
)

SPECS = (BREADCRUMBS, BREADCRUMBS_TIES, DELLA_LINEAR, DELLA)
