"""Task vectors thinned out before they are summed: by magnitude (TIES) or at random (DARE)."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

ZERO_SIGN = Parameter(
    name="zero_sign",
    kind="choice",
    default="zero",
    choices=("zero", "positive", "negative"),
    summary="what wins where the votes cancel: nobody, or one sign (positive is mergekit's rule)",
)


def weight() -> Parameter:
    """Return the coefficient of each task vector."""
    return Parameter(
        name="weight", default=1.0, search=(0.0, 1.5), per_source=True, summary="coefficient of each task vector"
    )


def density(default: float, summary: str, *, low: float = 0.1) -> Parameter:
    """Return a share of entries in (0, 1], searched from `low`."""
    return Parameter(
        name="density",
        default=default,
        low=0.0,
        low_open=True,
        high=1.0,
        search=(low, 1.0),
        per_source=True,
        summary=summary,
    )


def scale(search: tuple[float, float] | None) -> Parameter:
    """Return λ, the factor of the merged task vector; None: not searched unless asked for."""
    told = "λ, the factor of the merged task vector"
    if search is None:
        told = "λ, a common factor; not searched unless asked, since the weights already span it"
    return Parameter(name="scale", default=1.0, search=search, summary=told)


def normalize(*, default: bool, summary: str) -> Parameter:
    """Return whether weights are divided out."""
    return Parameter(name="normalize", kind="bool", default=default, summary=summary)


def rescale() -> Parameter:
    """Return what makes up for entries dropped at random."""
    return Parameter(
        name="rescale",
        kind="choice",
        default="inv_keep",
        choices=("inv_keep", "l1", "none"),
        summary="what makes up for dropped entries: 1/probability (the paper), the L1 norm (mergekit), nothing",
    )


TRIM_RESCALE = Parameter(
    name="rescale",
    kind="choice",
    default="none",
    choices=("none", "l1"),
    summary="what makes up for dropped entries: nothing (the paper), or the L1 norm (mergekit's rescale)",
)


_RANDOM_DENSITY = density(0.5, "share of entries kept at random, each with this probability")

TIES = OperatorSpec(
    name="ties",
    family="sparsified",
    summary="Keeps the largest entries of each task vector, elects a sign, averages those that agree.",
    paper="Yadav et al. 2023, TIES-Merging, arXiv:2306.01708",
    kernel="evomerge.operators.kernels.sparsified:ties",
    parameters=(
        weight(),
        density(0.2, "share of entries kept, the largest in magnitude"),
        scale((0.5, 1.5)),
        normalize(default=True, summary="weighted mean over the sources that agree, not their weighted sum"),
        Parameter(
            name="scope",
            kind="choice",
            default="tensor",
            choices=("tensor", "row", "global"),
            summary="where the largest are sought: in each tensor, each row, or the whole model (the paper)",
        ),
        TRIM_RESCALE,
        ZERO_SIGN,
    ),
    base="required",
    scope="model",
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent"),
)

DARE_LINEAR = OperatorSpec(
    name="dare_linear",
    family="sparsified",
    summary="Drops entries of each task vector at random, rescales the rest, and sums.",
    paper="Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099",
    kernel="evomerge.operators.kernels.sparsified:dare_linear",
    parameters=(
        weight(),
        _RANDOM_DENSITY,
        rescale(),
        scale(None),
        normalize(
            default=False,
            summary="divide by the sum of the weights (a sum nearer to 0 than 1e-8 counts as 1)",
        ),
    ),
    base="required",
    scope="tensor",
    random=True,
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent"),
)

DARE_TIES = OperatorSpec(
    name="dare_ties",
    family="sparsified",
    summary="Drops entries at random, rescales the rest, elects a sign, sums those that agree.",
    paper="Yu et al. 2024, arXiv:2311.03099, with the election of Yadav et al. 2023, arXiv:2306.01708",
    kernel="evomerge.operators.kernels.sparsified:dare_ties",
    parameters=(
        weight(),
        _RANDOM_DENSITY,
        rescale(),
        scale(None),
        normalize(default=False, summary="weighted mean over the sources that agree, not their weighted sum"),
        ZERO_SIGN,
    ),
    base="required",
    scope="tensor",
    random=True,
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent"),
)

SPECS = (TIES, DARE_LINEAR, DARE_TIES)
