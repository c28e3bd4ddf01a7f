"""Least interference between task vectors: WUDI, SWUDI, OptMerge."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.operators.sparsified import scale, weight
from evomerge.operators.spectral import LINEAR_LAWS, others, rank

_START = Parameter(
    name="start",
    kind="choice",
    default="sum",
    choices=("sum", "mean", "zero"),
    summary="what is kept where the sources say nothing: the sum of the w_i τ_i, their mean, nothing",
)

_TIME = Parameter(
    name="time",
    default=300.0,
    low=0.0,
    search=(1.0, 10000.0),
    scale="log",
    summary="t of the flow: 0 is the start, large is the minimum",
)

WUDI = OperatorSpec(
    name="wudi",
    family="spectral",
    summary="The merged task vector that interferes least with the rows of each source's, in closed form.",
    paper="Cheng et al. 2025, WUDI-Merging, arXiv:2503.08099",
    kernel="evomerge.operators.kernels.interference:wudi",
    parameters=(weight(), scale((0.3, 1.5)), others("mean")),
    base="required",
    scope="tensor",
    invariants=(*LINEAR_LAWS, "single", "identical"),
)

SWUDI = OperatorSpec(
    name="swudi",
    family="spectral",
    summary="The gradient flow from the sum of task vectors to that of WUDI, up to a time.",
    paper="SWUDI, in the code of Cheng et al. 2025, WUDI-Merging, arXiv:2503.08099",
    kernel="evomerge.operators.kernels.interference:swudi",
    parameters=(
        weight(),
        _TIME,
        _START,
        scale((0.3, 1.5)),
        others("mean"),
    ),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

OPTMERGE = OperatorSpec(
    name="optmerge",
    family="spectral",
    summary="SWUDI between the leading singular directions of the sources.",
    paper="Wei et al. 2025, OptMerge, arXiv:2505.19892",
    kernel="evomerge.operators.kernels.interference:optmerge",
    parameters=(
        weight(),
        rank("directions of each source that count, in units of min(m, n)/N"),
        Parameter(
            name="centre",
            kind="bool",
            default=True,
            summary="whether targets are cut around the mean task vector (models tuned as a whole) or 0 (adapters)",
        ),
        _TIME,
        _START,
        scale((0.1, 1.5)),
        others("base"),
    ),
    base="required",
    scope="tensor",
    invariants=LINEAR_LAWS,
)

SPECS = (WUDI, SWUDI, OPTMERGE)
