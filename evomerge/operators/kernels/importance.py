"""What kernels read of statistics measured beforehand.

Legend: F_i (or v_i) importance of each weight of source i, c_i its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.errors import SourceError
from evomerge.operators.kernels.context import Context, Statistic
from evomerge.operators.kernels.weighted import linear
from evomerge.operators.metadata import Resolved, StatisticKind


def measured(order: Sequence[int], kind: StatisticKind, context: Context) -> list[Statistic] | None:
    """Return the statistic of each source in `order`, or None where one has none for this parameter.

    Raises:
        SourceError: when the caller gives no statistics.
    """
    if context.statistic is None:
        raise SourceError(f"{context.name}: this method needs the statistic {kind!r} of every source; pass it")
    found = [context.statistic(index, kind) for index in order]
    known = [item for item in found if item is not None]
    return known if known and len(known) == len(found) else None


def importances(
    order: Sequence[int], kind: StatisticKind, like: Tensor, context: Context
) -> list[tuple[Tensor, Statistic]] | None:
    """Return each source's importance as a row-major vector, and what is known of it in the whole model.

    Raises:
        SourceError: for one of another size than the parameter.
    """
    found = measured(order, kind, context)
    for item in found or ():
        if item.tensor.numel() != like.numel():
            raise SourceError(
                f"{context.name}: its statistic {kind!r} has shape {tuple(item.tensor.shape)}, not {tuple(like.shape)}"
            )
    return None if found is None else [(item.tensor.reshape(-1), item) for item in found]


def mean(tensors: Sequence[Tensor], params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return Σ c_i θ_i / Σ c_i, what a parameter comes to for which something was not measured."""
    return linear(tensors, None, {"weight": params["weight"], "normalize": True}, context)


def common_scale(values: Sequence[float]) -> float:
    """Return the mean of positive numbers, by which all are divided so that float32 holds what they scale."""
    return math.fsum(values) / len(values)


def graft_score(delta: Tensor, importance: Tensor) -> Tensor:
    """Return |τ| √v, which orders entries as v τ² does and does not underflow: float32, both of one shape.

    A global threshold is compared with these numbers for equality, so every caller takes them from here.
    """
    return delta.abs() * importance.sqrt()
