"""Averages in which each weight counts by its Fisher information.

Legend: θ_i source i, F_i its diagonal Fisher (or any other importance), c_i its share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.importance import common_scale, importances, mean
from evomerge.operators.kernels.inputs import active, flatten, normalized, number, numbers, result_like, spans
from evomerge.operators.metadata import Resolved, StatisticKind


def fisher(
    tensors: Sequence[Tensor],
    base: Tensor | None,  # noqa: ARG001  every kernel has this signature
    params: Mapping[str, Resolved],
    context: Context,
) -> Tensor:
    """Return Σ c_i F_i θ_i / Σ c_i F_i (Matena and Raffel 2022, arXiv:2111.09832, eq. 4).

    With `normalize`, F_i is divided by its 2-norm over the whole model first, as the released code does. Deviations:
    F_i is at least `floor` times the sources' median importance, where the code has the absolute 1e-6, and before c_i
    multiplies it: where no F_i is larger, the result is the mean with the shares c_i. A parameter for which a source
    has no Fisher is that mean too.

    Raises:
        SourceError: for tensors or statistics that do not fit each other, or statistics that are not given.
    """
    flat = flatten(tensors, context)
    shares = normalized(numbers(params, "weight"))
    order = active(context, shares)
    found = importances(order, cast("StatisticKind", params["importance"]), tensors[0], context)
    if found is None:
        return mean(tensors, params, context)
    scales = [1 / item.norm if params["normalize"] else 1.0 for _, item in found]
    common = common_scale([item.median * scale for (_, item), scale in zip(found, scales, strict=True)])
    out = result_like(tensors[0], context)
    for start, stop in spans(out.numel(), out.device):
        # Differences from one source: equal sources give that source to the last bit.
        root = flat[order[0]][start:stop]
        total, weight, plain = (torch.zeros_like(root) for _ in range(3))
        for index, (importance, _), scale in zip(order, found, scales, strict=True):
            part = importance[start:stop].mul(scale / common).clamp_(min=number(params, "floor")).mul_(shares[index])
            delta = flat[index][start:stop] - root
            weight += part
            total.addcmul_(part, delta)
            plain.add_(delta, alpha=shares[index])
        out[start:stop] = torch.where(weight > 0, total / weight, plain).add_(root)
    return out.view(tensors[0].shape)
