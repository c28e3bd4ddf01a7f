"""Task vectors whose factors are known: LoRA adapters on the base."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """A task vector that is scale · second first, or the transpose of that."""

    first: Tensor
    """A, float32: (rank, inputs)."""
    second: Tensor
    """B, float32: (outputs, rank)."""
    scale: float
    transposed: bool = False
    """Whether the parameter is stored as (inputs, outputs)."""

    def factors(self, *, outputs_first: bool) -> tuple[Tensor, Tensor]:
        """Return (left, right) in float64 with τ = left right.

        Args:
            outputs_first: whether τ is meant as (outputs, inputs), or as its transpose.
        """
        first, second = self.first.double(), self.second.double() * self.scale
        return (second, first) if outputs_first else (first.T, second.T)
