"""The election of a sign, and the merge of what agrees with it (TIES, steps 2 and 3)."""

from __future__ import annotations

from torch import Tensor

from evomerge.operators.kernels.scratch import Scratch, accumulate

_TILTS = {"zero": 0.0, "positive": 0.5, "negative": -0.5}


class Votes:
    """Collects weighted task vectors of one span, and then merges those that agree.

    Legend: v_i = w_i τ̂_i. The elected sign s at an entry is that of Σ v_i; |v_i| counts where s·v_i > 0. Signs are
    numbers here: arithmetic on floats is several times faster than choosing by masks, which CPUs do entry by entry.
    """

    def __init__(self, *, mean: bool, scratch: Scratch | None = None) -> None:
        """Begin an election.

        Args:
            mean: whether what agrees is averaged, or summed.
            scratch: where sums of one-dimensional spans are kept; None: in new memory, and spans have any shape.
        """
        self._mean = mean
        self._scratch = scratch
        self._deltas: list[tuple[Tensor, float, float]] = []
        self._total: Tensor | None = None

    def add(self, delta: Tensor, weight: float, factor: float = 1.0) -> None:
        """Add w·factor·τ̂, w ≠ 0, factor > 0; `weight` alone counts in the mean; zeros do not vote.

        `delta` is kept until the merge, and overwritten then.
        """
        self._deltas.append((delta, weight, weight * factor))
        self._total = accumulate(self._total, delta, weight * factor, self._scratch)

    def merge(self, zero_sign: str) -> Tensor:
        """Return the sum (or mean) of the entries that agree with the elected sign; to be called once.

        The mean divides by the sum of |w_i| of those that agree. For weights ≥ 0 that is mergekit's
        divisor; below 0 it keeps the elected sign and the bound max |τ_i|, which Σ w_i does not.

        Args:
            zero_sign: what wins where the votes cancel: zero (the result is 0), positive or negative.

        Raises:
            ValueError: when nothing was added.
        """
        sign = self._elected(zero_sign)
        agreed = divisor = None
        for delta, weight, share in self._deltas:
            delta.mul_(sign)
            # Now s·τ̂_i; it is kept where s·v_i > 0, and times w_i it is |v_i| there.
            kept = delta.clamp_min_(0.0) if weight > 0 else delta.clamp_max_(0.0)
            agreed = accumulate(agreed, kept, share, self._scratch)
            if self._mean:
                divisor = accumulate(divisor, kept.sign_(), weight, self._scratch)
        if agreed is not None and divisor is not None:
            # Where nobody agrees 0 is divided; elsewhere the divisor is no smaller than one weight.
            agreed.div_(divisor.clamp_min_(min(abs(weight) for _, weight, _ in self._deltas)))
        return sign if agreed is None else sign.mul_(agreed)

    def _elected(self, zero_sign: str) -> Tensor:
        """Return the sign of the sum of all votes: -1, 0 or 1."""
        if self._total is None:
            raise ValueError("an election needs a vote")
        sign = self._total.sign_()
        return sign if zero_sign == "zero" else sign.add_(_TILTS[zero_sign]).sign_()
