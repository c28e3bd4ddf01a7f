"""Merges of LoRA adapters factor by factor: Evo-Merging.

Legend: θ_0 base, τ_i = s_i B_i A_i the update of adapter i, with A_i (rank, inputs) and B_i (outputs, rank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.errors import SourceError
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import numbers
from evomerge.operators.kernels.low_rank import LowRank
from evomerge.operators.kernels.matrices import Tasks
from evomerge.operators.kernels.selection import kth_largest_magnitude
from evomerge.operators.metadata import Resolved


def evo_merging(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + (Σ β_i s_i B_i)(Σ β_i S(A_i)), where S keeps the largest entries of A_i: asymmetric sparsification.

    Evo-Merging, arXiv:2509.12951. β_i multiplies both factors, so that adapters also act through each other's, and β
    gives what -β gives. An adapter that leaves a tensor alone adds nothing to either sum. Tensors that no adapter has
    factors of (trained biases, modules saved as a whole) become θ_0 + Σ β_i τ_i. Deviation: the adapters' scales s_i,
    equal in the paper, go with B_i.

    Raises:
        SourceError: for adapters of different ranks, or of which one has factors and another the whole tensor.
    """
    tasks = Tasks(tensors, base, params, context)
    found = {index: context.low_rank(index) for index in tasks.indices}
    known = {index: update for index, update in found.items() if update is not None}
    if not known:
        return tasks.linear(tasks.weights)
    for position, index in enumerate(tasks.indices):
        if index not in known and bool(tasks.vector(position)[:].any()):
            raise SourceError(
                f"{context.name}: one adapter has factors of this tensor and another replaces it as a whole, so "
                "evo_merging cannot add their factors; use a method that takes whole tensors, such as task_arithmetic"
            )
    weights = numbers(params, "weight")
    densities = numbers(params, "density")
    merged = merged_factors(
        context.name, [(known[index], weights[index], densities[index]) for index in tasks.indices if index in known]
    )
    left, right = merged.factors(outputs_first=not merged.transposed)
    return tasks.result_as_stored(left @ right)


def merged_factors(name: str, parts: Sequence[tuple[LowRank, float, float]]) -> LowRank:
    """Return Σ β_i s_i B_i and Σ β_i S(A_i) as one update of scale 1, its factors in float64.

    Args:
        name: of the tensor, for errors.
        parts: (update, β, share of A's entries kept) of each adapter.

    Raises:
        SourceError: for adapters of different ranks.
    """
    ranks = sorted({update.first.shape[0] for update, _, _ in parts})
    if len(ranks) > 1:
        raise SourceError(
            f"{name}: evo_merging adds the factors of adapters, and these have the ranks "
            f"{', '.join(map(str, ranks))}; use adapters of one rank, or a method that takes their products, such as "
            "knots or task_arithmetic"
        )
    first = torch.zeros_like(parts[0][0].first, dtype=torch.float64)
    second = torch.zeros_like(parts[0][0].second, dtype=torch.float64)
    for update, weight, density in parts:
        first.add_(_sparse(update.first, density), alpha=weight)
        second.add_(update.second, alpha=weight * update.scale)
    return LowRank(first=first, second=second, scale=1.0, transposed=parts[0][0].transposed)


def _sparse(factor: Tensor, density: float) -> Tensor:
    """Return the round(α·numel) largest entries, at least one, with all that equal the last; none for α = 0."""
    if density == 0:
        return torch.zeros_like(factor)
    limit = kth_largest_magnitude(factor, max(1, round(density * factor.numel())))
    return factor.masked_fill(factor.abs() < limit, 0.0)
