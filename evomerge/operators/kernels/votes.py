"""The election of a sign, and the merge of what agrees with it (TIES, steps 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor


class Votes:
    """Collects weighted task vectors of one span; memory does not grow with the number of sources.

    Legend: v_i = w_i τ̂_i. The elected sign at an entry is that of Σ v_i. Positive and negative shares are
    summed apart, so the sum over those that agree is known once the sign is.
    """

    def __init__(self, like: Tensor, *, mean: bool) -> None:
        self._positive = torch.zeros_like(like)
        self._negative = torch.zeros_like(like)
        self._positive_weight = torch.zeros_like(like) if mean else None
        self._negative_weight = torch.zeros_like(like) if mean else None

    def add(self, delta: Tensor, weight: float, factor: float = 1.0) -> None:
        """Add w·factor·τ̂ (`delta` is overwritten); `weight` alone counts in the mean; zeros do not vote."""
        delta.mul_(weight * factor)
        self._positive.add_(delta.clamp(min=0))
        self._negative.add_(delta.clamp(max=0))
        if self._positive_weight is not None and self._negative_weight is not None:
            self._positive_weight.add_(delta > 0, alpha=abs(weight))
            self._negative_weight.add_(delta < 0, alpha=abs(weight))

    def merge(self, zero_sign: str) -> Tensor:
        """Return the sum (or mean) of the entries that agree with the elected sign.

        The mean divides by the sum of |w_i| of those that agree. For weights ≥ 0 that is mergekit's
        divisor; below 0 it keeps the elected sign and the bound max |τ_i|, which Σ w_i does not.

        Args:
            zero_sign: what wins where the votes cancel: zero (the result is 0), positive or negative.
        """
        total = self._positive + self._negative
        positive = _divide(self._positive, self._positive_weight)
        negative = _divide(self._negative, self._negative_weight)
        if zero_sign == "positive":
            return torch.where(total >= 0, positive, negative)
        if zero_sign == "negative":
            return torch.where(total > 0, positive, negative)
        merged = torch.where(total > 0, positive, negative)
        return merged.masked_fill_(total == 0, 0.0)


def _divide(total: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return total
    return total / weight.masked_fill(weight == 0, 1.0)
