"""Task vectors thinned out before they are summed: by magnitude (TIES) or at random (DARE)."""

from __future__ import annotations

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
    weight,
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
        normalize_agreeing(default=True),
        choice(
            "scope",
            ("tensor", "row", "global"),
            "where the largest are sought: in each tensor, each row, or the whole model (the paper)",
        ),
        TRIM_RESCALE,
        ZERO_SIGN,
    ),
    base="required",
    scope="model",
    invariants=TASK_LAWS,
)

DARE_LINEAR = OperatorSpec(
    name="dare_linear",
    family="sparsified",
    summary="Drops entries of each task vector at random, rescales the rest, and sums.",
    paper="Yu et al. 2024, Language models are Super Mario, arXiv:2311.03099",
    kernel="evomerge.operators.kernels.sparsified:dare_linear",
    parameters=(weight(), _RANDOM_DENSITY, RESCALE, scale(None), normalize_sum(default=False)),
    base="required",
    scope="tensor",
    random=True,
    invariants=TASK_LAWS,
)

DARE_TIES = OperatorSpec(
    name="dare_ties",
    family="sparsified",
    summary="Drops entries at random, rescales the rest, elects a sign, sums those that agree.",
    paper="Yu et al. 2024, arXiv:2311.03099, with the election of Yadav et al. 2023, arXiv:2306.01708",
    kernel="evomerge.operators.kernels.sparsified:dare_ties",
    parameters=(weight(), _RANDOM_DENSITY, RESCALE, scale(None), normalize_agreeing(default=False), ZERO_SIGN),
    base="required",
    scope="tensor",
    random=True,
    invariants=TASK_LAWS,
)

SPECS = (TIES, DARE_LINEAR, DARE_TIES)
