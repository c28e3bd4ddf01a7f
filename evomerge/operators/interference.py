"""Least interference between task vectors: WUDI, SWUDI, OptMerge."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS
from evomerge.operators.parameters import choice, flag, non_negative, others, rank, scale, weight
from evomerge.operators.spectral import SPECTRAL

_START = choice(
    "start",
    ("sum", "mean", "zero"),
    "what is kept where the sources say nothing: the sum of the w_i τ_i, their mean, nothing",
)

_TIME = non_negative("time", 300.0, "t of the flow: 0 is the start, large is the minimum", (1.0, 10000.0), scale="log")

WUDI = SPECTRAL(
    name="wudi",
    summary="The merged task vector that interferes least with the rows of each source's, in closed form.",
    paper="Cheng et al. 2025, WUDI-Merging, arXiv:2503.08099",
    kernel="evomerge.operators.kernels.interference:wudi",
    parameters=(weight(), scale((0.3, 1.5)), others("mean")),
    invariants=(*TASK_LAWS, "single", "identical"),
)

SWUDI = SPECTRAL(
    name="swudi",
    summary="The gradient flow from the sum of task vectors to that of WUDI, up to a time.",
    paper="SWUDI, in the code of Cheng et al. 2025, WUDI-Merging, arXiv:2503.08099",
    kernel="evomerge.operators.kernels.interference:swudi",
    parameters=(weight(), _TIME, _START, scale((0.3, 1.5)), others("mean")),
)

OPTMERGE = SPECTRAL(
    name="optmerge",
    summary="SWUDI between the leading singular directions of the sources.",
    paper="Wei et al. 2025, OptMerge, arXiv:2505.19892",
    kernel="evomerge.operators.kernels.interference:optmerge",
    parameters=(
        weight(),
        rank("directions of each source that count, in units of min(m, n)/N"),
        flag(
            "centre",
            "whether targets are cut around the mean task vector (models tuned as a whole) or 0 (adapters)",
        ),
        _TIME,
        _START,
        scale((0.1, 1.5)),
        others("base"),
    ),
)

SPECS = (WUDI, SWUDI, OPTMERGE)
