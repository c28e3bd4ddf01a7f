"""Methods that weigh sources by statistics measured beforehand: Fisher, RegMean, OTA with Fast Fisher Grafting."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS, OperatorSpec, Parameter
from evomerge.operators.parameters import SOURCE_SHARE, choice, density, flag, importance, share

FISHER = OperatorSpec(
    name="fisher",
    family="statistical",
    summary="Average in which each weight counts by its Fisher information: Σ c_i F_i θ_i / Σ c_i F_i.",
    paper="Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv:2111.09832",
    kernel="evomerge.operators.kernels.fisher:fisher",
    parameters=(
        SOURCE_SHARE,
        Parameter(
            name="floor",
            default=1e-6,
            low=0.0,
            high=1.0,
            search=(1e-8, 1e-2),
            scale="log",
            summary="smallest F_i, as a share of the median of the model's positive ones",
        ),
        flag("normalize", "divide each F_i by its 2-norm over the whole model"),
        importance("fisher"),
    ),
    base="ignored",
    needs=("importance",),
    invariants=(*TASK_LAWS, "single", "identical"),
)

REGMEAN = OperatorSpec(
    name="regmean",
    family="statistical",
    summary="Linear layers nearest to all sources in their outputs on their own inputs; the mean of all else.",
    paper="Jin et al. 2023, Dataless knowledge fusion by merging weights of language models, arXiv:2212.09849",
    kernel="evomerge.operators.kernels.regmean:regmean",
    parameters=(
        SOURCE_SHARE,
        share("alpha", 0.9, "factor of the Gram matrices' entries off the diagonal", (0.0, 0.99)),
    ),
    base="ignored",
    scope="tensor",
    needs=("gram",),
    invariants=(*TASK_LAWS, "single", "identical"),
)

OTA = OperatorSpec(
    name="ota",
    family="statistical",
    summary="Keeps the entries of each task vector that matter most, and averages them by a power of their importance.",
    paper="Mahdavinia et al. 2025, Optimization dynamics for curvature-informed merging, arXiv:2509.11167",
    kernel="evomerge.operators.kernels.ota:ota",
    parameters=(
        SOURCE_SHARE,
        density(0.4, "share of entries kept, those of the largest v_i τ_i²", low=0.05),
        share(
            "power", 0.5, "exponent of the importance in the average; 0: the plain mean of what is kept", (0.25, 1.0)
        ),
        flag("normalize", "divide each v_i by its mean over the whole model", default=False),
        choice(
            "scope",
            ("global", "tensor"),
            "where the largest are sought: in the whole model (the paper) or in each tensor",
        ),
        importance("adam"),
    ),
    base="required",
    scope="model",
    needs=("importance",),
    invariants=TASK_LAWS,
)

SPECS = (FISHER, REGMEAN, OTA)
