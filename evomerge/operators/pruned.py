"""Task vectors pruned by the rank of each entry's magnitude: breadcrumbs and DELLA."""

from __future__ import annotations

from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter
from evomerge.operators.sparsified import TRIM_RESCALE, ZERO_SIGN, density, normalize, rescale, scale, weight

_TOP = Parameter(
    name="top",
    default=0.01,
    low=0.0,
    high=1.0,
    search=(0.0, 0.1),
    per_source=True,
    summary="share of entries dropped as too large (mergekit's gamma); fewer where the density leaves no room",
)
_BAND = density(0.9, "share of entries kept, the largest below the dropped ones", low=0.05)
_SCOPE = Parameter(
    name="scope",
    kind="choice",
    default="tensor",
    choices=("tensor", "row"),
    summary="where magnitudes are ranked: in each tensor (mergekit) or each row (the released code)",
)
_BREADCRUMBS = "Davari and Belilovsky 2024, Model breadcrumbs, arXiv:2312.06795"
_EPSILON = Parameter(
    name="epsilon",
    default=0.15,
    low=0.0,
    high=0.5,
    search=(0.0, 0.3),
    per_source=True,
    summary="half of the window of keep probabilities, density ± epsilon; smaller where that would leave [0, 1]",
)
_CHANCE = density(0.7, "mean share of entries kept at random", low=0.1)
_DELLA = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"
_LAWS: tuple[Invariant, ...] = ("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent")
_SUM = "divide by the sum of the weights (a sum nearer to 0 than 1e-8 counts as 1)"
_MEAN = "weighted mean over the sources that agree, not their weighted sum"

BREADCRUMBS = OperatorSpec(
    name="breadcrumbs",
    family="pruned",
    summary="Drops the largest and the smallest entries of each task vector, and sums the rest.",
    paper=_BREADCRUMBS,
    kernel="evomerge.operators.kernels.pruned:breadcrumbs",
    parameters=(weight(), _BAND, _TOP, scale(None), normalize(default=False, summary=_SUM), _SCOPE, TRIM_RESCALE),
    base="required",
    scope="tensor",
    invariants=_LAWS,
)

BREADCRUMBS_TIES = OperatorSpec(
    name="breadcrumbs_ties",
    family="pruned",
    summary="Drops the largest and the smallest entries, elects a sign, sums those that agree.",
    paper=f"{_BREADCRUMBS}, with the election of Yadav et al. 2023, arXiv:2306.01708",
    kernel="evomerge.operators.kernels.pruned:breadcrumbs_ties",
    parameters=(
        weight(),
        _BAND,
        _TOP,
        scale(None),
        normalize(default=False, summary=_MEAN),
        _SCOPE,
        TRIM_RESCALE,
        ZERO_SIGN,
    ),
    base="required",
    scope="tensor",
    invariants=_LAWS,
)

DELLA_LINEAR = OperatorSpec(
    name="della_linear",
    family="pruned",
    summary="Drops entries at random, small ones more often, rescales the rest, and sums.",
    paper=_DELLA,
    kernel="evomerge.operators.kernels.pruned:della_linear",
    parameters=(weight(), _CHANCE, _EPSILON, rescale(), scale(None), normalize(default=False, summary=_SUM)),
    base="required",
    scope="tensor",
    random=True,
    invariants=_LAWS,
)

DELLA = OperatorSpec(
    name="della",
    family="pruned",
    summary="Drops entries at random, small ones more often, rescales, elects a sign, averages those that agree.",
    paper=_DELLA,
    kernel="evomerge.operators.kernels.pruned:della",
    parameters=(
        weight(),
        _CHANCE,
        _EPSILON,
        rescale(),
        scale((0.5, 1.5)),
        normalize(default=True, summary=_MEAN),
        ZERO_SIGN,
    ),
    base="required",
    scope="tensor",
    random=True,
    invariants=_LAWS,
)

SPECS = (BREADCRUMBS, BREADCRUMBS_TIES, DELLA_LINEAR, DELLA)
