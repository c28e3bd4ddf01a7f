"""The sum of task vectors, masked by where single tasks agree with it: TALL-masks and Consensus Merging.

Legend: τ_i task vector, τ = Σ τ_i, λ_i threshold of source i, m_i its mask, α scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number, numbers
from evomerge.operators.kernels.tasks import Tasks, total
from evomerge.operators.metadata import Resolved


def tall_mask(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + α·τ where the mask of a retrieved source says so: m_i = |τ_i| > λ_i |τ - τ_i|.

    Wang et al. 2024, arXiv:2405.07813. With `retrieve` true for one source alone it is the paper's model for that
    task; with several (all, by default) their masks are united.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    chosen = tuple(bool(one) for one in numbers(params, "retrieve"))
    return _masked(tensors, base, params, context, retrieved=chosen, agreeing=1)


def consensus(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + α·τ where at least k of the masks m_i = |τ_i| > λ_i |τ - τ_i| agree.

    Wang et al. 2024, arXiv:2405.07813. k = 0 is task arithmetic, k = 1 drops what no task uses, k = 2 also what one
    task alone uses; k above the number of sources gives the base. The paper's variant whose τ comes from TIES is not
    offered.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    agreeing = int(number(params, "k"))
    return _masked(tensors, base, params, context, retrieved=(True,) * len(tensors), agreeing=agreeing)


def _masked(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    params: Mapping[str, Resolved],
    context: Context,
    *,
    retrieved: Sequence[bool],
    agreeing: int,
) -> Tensor:
    """Return θ_0 + α·τ where at least `agreeing` masks of the retrieved sources hold."""
    thresholds, scale = numbers(params, "mask_threshold"), number(params, "scale")
    tasks = Tasks(tensors, base, context, thresholds, retrieved)
    if scale == 0:
        return tasks.base()
    voters = list(zip(tasks.ordered(thresholds), tasks.ordered(retrieved), strict=True))

    def blend(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        whole = total(deltas)
        votes = torch.zeros_like(whole)
        for delta, (threshold, votes_too) in zip(deltas, voters, strict=True):
            if votes_too:
                votes += delta.abs() > (whole - delta).abs_().mul_(threshold)
        return whole.mul_(scale).masked_fill_(votes < agreeing, 0.0)

    return tasks.merge(blend)
