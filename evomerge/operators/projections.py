"""Task vectors that keep out of each other's subspaces: OPCM and DOGE."""

from __future__ import annotations

from evomerge.operators.metadata import TASK_LAWS, Parameter
from evomerge.operators.parameters import choice, density, non_negative, others, share, weight
from evomerge.operators.spectral import SPECTRAL

OPCM = SPECTRAL(
    name="opcm",
    summary="Adds sources one after the other, each without what its predecessors' directions have of it.",
    paper="Tang et al. 2025, Merging models on the fly without retraining, arXiv:2501.09522",
    kernel="evomerge.operators.kernels.projections:opcm",
    parameters=(
        weight(search=None),
        Parameter(
            name="order",
            default=0.0,
            search=(0.0, 1.0),
            per_source=True,
            summary="place in the sequence, the smallest first; equal ones come by content",
        ),
        share(
            "share",
            0.5,
            "α, the share of the sum of singular values whose directions are closed to what follows",
            (0.0, 1.0),
        ),
        choice(
            "scope",
            ("tensor", "global"),
            "whose lengths are averaged: each tensor's, or the whole model's (the paper), for one more merge of it",
        ),
    ),
    scope="model",
    invariants=(*TASK_LAWS, "single", "identical"),
)

DOGE = SPECTRAL(
    name="doge",
    summary="Trimmed task vectors of equal length, moved together so that they conflict less.",
    paper="Wei et al. 2025, Adaptive projective gradient descent, arXiv:2501.01230",
    kernel="evomerge.operators.kernels.projections:doge",
    parameters=(
        non_negative(
            "weight",
            0.3,
            "length of each task vector in the sum, relative to their mean length",
            (0.0, 1.0),
            per_source=True,
        ),
        density(0.3, "share of entries kept, the largest in magnitude"),
        Parameter(
            name="steps",
            kind="int",
            default=100,
            low=0,
            high=10000,
            summary="gradient steps of the common shift; 0: none",
        ),
        Parameter(
            name="subspace",
            default=6.0,
            low=1.0,
            high=1000.0,
            summary="d: min(m, n)/d common directions are closed to the shift",
        ),
        choice(
            "scope",
            ("tensor", "global"),
            "where the largest are sought: in each tensor, or the whole model (the paper)",
        ),
        others("base"),
    ),
    scope="model",
)

SPECS = (OPCM, DOGE)
