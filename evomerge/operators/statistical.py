"""Methods that weigh sources by statistics measured beforehand: Fisher, RegMean, OTA with Fast Fisher Grafting."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter

_SHARE = Parameter(
    name="weight", default=1.0, low=0.0, search=(0.0, 1.0), per_source=True, summary="share of each source"
)


def _importance(default: str) -> Parameter:
    return Parameter(
        name="importance",
        kind="choice",
        default=default,
        choices=("fisher", "adam"),
        summary="which statistic says how much a weight matters: the diagonal Fisher, or Adam's second moments",
    )


FISHER = OperatorSpec(
    name="fisher",
    family="statistical",
    summary="Average in which each weight counts by its Fisher information: Σ c_i F_i θ_i / Σ c_i F_i.",
    paper="Matena and Raffel 2022, Merging models with Fisher-weighted averaging, arXiv:2111.09832",
    kernel="evomerge.operators.kernels.fisher:fisher",
    parameters=(
        _SHARE,
        Parameter(
            name="floor",
            default=1e-6,
            low=0.0,
            high=1.0,
            search=(1e-8, 1e-2),
            scale="log",
            summary="smallest F_i, as a share of the median of the model's positive ones",
        ),
        Parameter(
            name="normalize",
            kind="bool",
            default=True,
            summary="divide each F_i by its 2-norm over the whole model",
        ),
        _importance("fisher"),
    ),
    base="ignored",
    needs=("importance",),
    invariants=(
        "permutation",
        "scale",
        "task_scale",
        "translation",
        "neutral_weight",
        "idempotent",
        "single",
        "identical",
    ),
)

REGMEAN = OperatorSpec(
    name="regmean",
    family="statistical",
    summary="Linear layers nearest to all sources in their outputs on their own inputs; the mean of all else.",
    paper="Jin et al. 2023, Dataless knowledge fusion by merging weights of language models, arXiv:2212.09849",
    kernel="evomerge.operators.kernels.regmean:regmean",
    parameters=(
        _SHARE,
        Parameter(
            name="alpha",
            default=0.9,
            low=0.0,
            high=1.0,
            search=(0.0, 0.99),
            summary="factor of the Gram matrices' entries off the diagonal",
        ),
    ),
    base="ignored",
    scope="tensor",
    needs=("gram",),
    invariants=(
        "permutation",
        "scale",
        "task_scale",
        "translation",
        "neutral_weight",
        "idempotent",
        "single",
        "identical",
    ),
)

OTA = OperatorSpec(
    name="ota",
    family="statistical",
    summary="Keeps the entries of each task vector that matter most, and averages them by a power of their importance.",
    paper="Mahdavinia et al. 2025, Optimization dynamics for curvature-informed merging, arXiv:2509.11167",
    kernel="evomerge.operators.kernels.ota:ota",
    parameters=(
        _SHARE,
        Parameter(
            name="density",
            default=0.4,
            low=0.0,
            low_open=True,
            high=1.0,
            search=(0.05, 1.0),
            per_source=True,
            summary="share of entries kept, those of the largest v_i τ_i²",
        ),
        Parameter(
            name="power",
            default=0.5,
            low=0.0,
            high=1.0,
            search=(0.25, 1.0),
            summary="exponent of the importance in the average; 0: the plain mean of what is kept",
        ),
        Parameter(
            name="normalize",
            kind="bool",
            default=False,
            summary="divide each v_i by its mean over the whole model",
        ),
        Parameter(
            name="scope",
            kind="choice",
            default="global",
            choices=("global", "tensor"),
            summary="where the largest are sought: in the whole model (the paper) or in each tensor",
        ),
        _importance("adam"),
    ),
    base="required",
    scope="model",
    needs=("importance",),
    invariants=("permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent"),
)

SPECS = (FISHER, REGMEAN, OTA)
