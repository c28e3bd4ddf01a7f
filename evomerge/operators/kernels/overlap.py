"""Sparse task vectors merged by how many of them changed an entry: RAM and RAM+.

Legend: τ_i task vector, active where |τ_i| > ε; an entry is unique to i where it alone is active, shared where several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number
from evomerge.operators.kernels.tasks import Tasks
from evomerge.operators.metadata import Resolved


def ram(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + the mean of the active τ_i, entry by entry (arXiv:2601.13572).

    An entry unique to one source is kept whole, one active in several is their mean, one active in none is 0. ε is
    an absolute size, as in mergekit, so the result is not scale-equivariant.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks, epsilon = Tasks(tensors, base, context), number(params, "epsilon")
    return tasks.merge(lambda deltas, _: _merged(deltas, epsilon, None))


def ramplus(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return the merge of `ram` with the entries unique to source i times 1 + r·min(shared_i / unique_i, α).

    arXiv:2601.13572, in mergekit's tensor-local form (`ramplus_tl`): shared_i and unique_i count the entries of this
    tensor. A source that shares much makes up for what averaging took from it where it is alone.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks, epsilon = Tasks(tensors, base, context), number(params, "epsilon")
    shared = torch.zeros(tasks.count, dtype=torch.int64)
    unique = torch.zeros(tasks.count, dtype=torch.int64)
    for deltas in tasks.deltas():
        activity = [delta.abs() > epsilon for delta in deltas]
        count = _count(activity)
        for place, active in enumerate(activity):
            alone = int((active & (count == 1)).sum())
            unique[place] += alone
            shared[place] += int(active.sum()) - alone
    ratio = (shared.double() / unique.clamp_min(1)).clamp_max(number(params, "alpha"))
    factors = [float(factor) for factor in 1.0 + number(params, "r") * ratio]
    return tasks.merge(lambda deltas, _: _merged(deltas, epsilon, factors))


def _count(activity: Sequence[Tensor]) -> Tensor:
    """Return in how many sources each entry is active, float32."""
    count = torch.zeros(activity[0].shape, device=activity[0].device)
    for active in activity:
        count += active
    return count


def _merged(deltas: list[Tensor], epsilon: float, factors: Sequence[float] | None) -> Tensor:
    """Return the mean over the active sources; entries unique to one are multiplied by its factor."""
    activity = [delta.abs() > epsilon for delta in deltas]
    count = _count(activity)
    merged, boosted = torch.zeros_like(count), torch.zeros_like(count)
    for place, (delta, active) in enumerate(zip(deltas, activity, strict=True)):
        delta.mul_(active)
        merged += delta
        if factors is not None:
            boosted.add_(delta, alpha=factors[place])
    merged /= count.clamp(min=1.0)
    return merged if factors is None else torch.where(count == 1, boosted, merged)
