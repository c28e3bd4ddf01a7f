"""WIDEN: each input column of a weight matrix counts by how far its length and its direction moved.

Legend: W_0 base, W_i source i, τ_i = W_i - W_0, M column norms, r rank of a column over the number of columns,
t threshold, s score of what lies above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number
from evomerge.operators.kernels.tasks import Tasks
from evomerge.operators.metadata import Resolved

_HEADS = ("head", "embed_out")
_ROUNDING = 1e-12
"""A smaller share of |τ|² across a column does not turn it."""


def widen(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return W_0 + Σ w_ij τ_i[:, j] over columns j (Yu et al. 2024, arXiv:2408.03092).

    For each source, columns are ranked by |M_ij - M_0j| and again by 1 - cos(W_i[:, j], W_0[:, j]); a column's score is
    the softmax over the sources of r_ij, but s where r_ij is above t times the source's mean rank; w is the mean of
    both scores. Of a token embedding (not the head) each row counts as a column, as it does where a matrix is stored
    as (inputs, outputs); of a vector each entry, by |τ|; of more dimensions all but the last are taken as rows.
    Deviations: equal columns share the mean of their ranks, unless `ties: position` ranks them by place, as released
    (unchanged columns are common); the direction of a column of length 0 counts as unmoved, where the released code
    gives NaN.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks, row = Tasks(tensors, base, context), 1
    embeds = context.is_vocabulary and not any(name in context.name for name in _HEADS)
    by_row = tensors[0].dim() == 2 and (embeds or context.inputs_first)
    if tensors[0].dim() < 2:
        (moved,) = tasks.kept("moves of entries", lambda: (_entry_moves(tasks),))
    else:
        row = tasks.row
        kind = "rows" if by_row else "columns"
        (moved,) = tasks.kept(f"moves of {kind}", lambda: (_moves(tasks, by_row=by_row),))
    threshold, high = number(params, "t"), number(params, "s")
    mean_ties = params["ties"] == "mean"
    scores = torch.stack([_scores(one, threshold, high, mean_ties=mean_ties) for one in moved])
    weights = scores.mean(dim=0).to(tensors[0].device)

    def blend(deltas: list[Tensor], start: int) -> Tensor:
        merged = torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights, strict=True):
            if by_row:
                first = start // row
                rows = delta.view(-1, row)
                rows.mul_(weight[first : first + len(rows)].unsqueeze(1))
            elif row > 1 or tensors[0].dim() > 1:
                delta.view(-1, row).mul_(weight)
            else:
                delta.mul_(weight[start : start + len(delta)])
            merged += delta
        return merged

    return tasks.merge(blend, row)


def _entry_moves(tasks: Tasks) -> Tensor:
    """Return |τ_i| of a vector: float64 of shape (1, N, entries)."""
    whole = [torch.stack(deltas).abs_() for deltas in tasks.deltas()]
    return torch.cat([torch.zeros(tasks.count, 0), *(part.cpu() for part in whole)], dim=1).double().unsqueeze(0)


def _moves(tasks: Tasks, *, by_row: bool) -> Tensor:
    """Return how far lengths and directions moved: float64 of shape (2, N, columns), or rows.

    From sums of w_0², w_0·τ and τ² alone, all of them exactly 0 for a τ of 0: M_i - M_0 = (2 w_0·τ + τ²) / (M_i + M_0)
    and 1 - cos = (|τ|² - (M_i - M_0)²) / (2 M_i M_0), which lose nothing for a small τ.
    """
    sums = torch.zeros(2 * tasks.count + 1, 0 if by_row else tasks.row, dtype=torch.float64)
    found = [sums]
    for _, root, deltas in tasks.parts(tasks.row):
        origin = root.view(-1, tasks.row).double()
        moved = [delta.view(-1, tasks.row).double() for delta in deltas]
        pairs = [(origin, origin), *((origin, one) for one in moved), *((one, one) for one in moved)]
        part = torch.stack([(a * b).sum(dim=1 if by_row else 0) for a, b in pairs]).cpu()
        if by_row:
            found.append(part)
        else:
            sums += part
    squares, products, changes = torch.cat(found, dim=1).tensor_split((1, tasks.count + 1))
    tuned = (squares + 2 * products + changes).clamp_min_(0.0).sqrt()
    length = squares.sqrt()
    both = tuned + length
    longer = (2 * products + changes) / both.where(both > 0, torch.ones_like(both))
    area = 2 * tuned * length
    across = changes - longer.square()
    turned = across / area.where(area > 0, torch.ones_like(area))
    # What is left of a column that only grew is rounding, which would rank at random.
    return torch.stack([longer.abs(), turned.masked_fill((area == 0) | (across <= _ROUNDING * changes), 0.0)])


def _scores(moved: Tensor, threshold: float, high: float, *, mean_ties: bool) -> Tensor:
    """Return the score of every column of every source: float32, shape (N, columns), as `moved`."""
    columns = max(1, moved.shape[1])
    ranks = torch.stack([_ranks(one, mean_ties=mean_ties) for one in moved])
    return torch.where(ranks > threshold * (columns - 1) / 2, high, (ranks / columns).softmax(dim=0)).float()


def _ranks(values: Tensor, *, mean_ties: bool) -> Tensor:
    """Return the rank of each value, the smallest 0: float64; equal ones share the mean rank, or rank by place."""
    order = values.argsort(stable=True)
    ranks = torch.empty_like(values)
    if not mean_ties:
        ranks[order] = torch.arange(len(values), dtype=values.dtype, device=values.device)
        return ranks
    ascending = values[order]
    first = torch.searchsorted(ascending, values.contiguous())
    last = torch.searchsorted(ascending, values.contiguous(), right=True) - 1
    return (first + last).to(values.dtype) / 2
