"""Task vectors that keep out of each other's subspaces: OPCM and DOGE."""

from __future__ import annotations

from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.operators.sparsified import density
from evomerge.operators.spectral import LINEAR_LAWS, others, weight_on_request

OPCM = OperatorSpec(
    name="opcm",
    family="spectral",
    summary="Adds sources one after the other, each without what its predecessors' directions have of it.",
    paper="Tang et al. 2025, Merging models on the fly without retraining, arXiv:2501.09522",
    kernel="evomerge.operators.kernels.projections:opcm",
    parameters=(
        weight_on_request("coefficient of each task vector"),
        Parameter(
            name="order",
            default=0.0,
            search=(0.0, 1.0),
            per_source=True,
            summary="place in the sequence, the smallest first; equal ones come by content",
        ),
        Parameter(
            name="share",
            default=0.5,
            low=0.0,
            high=1.0,
            search=(0.0, 1.0),
            summary="α, the share of the sum of singular values whose directions are closed to what follows",
        ),
    ),
    base="required",
    scope="tensor",
    invariants=(*LINEAR_LAWS, "single", "identical"),
)

DOGE = OperatorSpec(
    name="doge",
    family="spectral",
    summary="Trimmed task vectors of equal length, moved together so that they conflict less.",
    paper="Wei et al. 2025, Adaptive projective gradient descent, arXiv:2501.01230",
    kernel="evomerge.operators.kernels.projections:doge",
    parameters=(
        Parameter(
            name="weight",
            default=0.3,
            low=0.0,
            search=(0.0, 1.0),
            per_source=True,
            summary="length of each task vector in the sum, relative to their mean length",
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
        Parameter(
            name="scope",
            kind="choice",
            default="tensor",
            choices=("tensor", "global"),
            summary="where the largest are sought: in each tensor, or the whole model (the paper)",
        ),
        others("base"),
    ),
    base="required",
    scope="model",
    invariants=LINEAR_LAWS,
)

SPECS = (OPCM, DOGE)
