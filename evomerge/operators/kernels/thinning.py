"""What becomes of a task vector before it is merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.operators.kernels.masks import drop_entries

Sparsify = Callable[[int, Tensor, int], Tensor]
"""(source index, span of τ that may be overwritten, where the span starts) to the span of τ̂."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Nothing."""

    def __call__(self, index: int, delta: Tensor, start: int) -> Tensor:  # noqa: ARG002  as every `Sparsify`
        """Return τ̂ = τ."""
        return delta


@dataclass(frozen=True, slots=True)
class Trim:
    """Entries below a magnitude become 0."""

    limits: Mapping[int, float]
    """By source; those of others stay as they are."""

    def __call__(self, index: int, delta: Tensor, start: int) -> Tensor:  # noqa: ARG002  as every `Sparsify`
        """Trim a span."""
        return trim(delta, self.limits[index]) if index in self.limits else delta


@dataclass(frozen=True, slots=True)
class Drop:
    """Entries drawn at random become 0."""

    keys: Mapping[int, int]
    """`masks.mask_key` by source."""
    densities: Mapping[int, float]
    """Share kept, by source; from 1 on nothing is dropped."""

    def __call__(self, index: int, delta: Tensor, start: int) -> Tensor:
        """Drop entries of a span."""
        if self.densities[index] >= 1:
            return delta
        return drop_entries(delta, self.keys[index], self.densities[index], offset=start)


def trim(values: Tensor, limit: float) -> Tensor:
    """Set to 0 in place what is smaller than the magnitude `limit` (a float32, >= 0), and return `values`."""
    # Kept is what lies beyond the float before; hardshrink is one vectorised pass, a mask is several times slower.
    return torch.hardshrink(values, float(np.nextafter(np.float32(limit), np.float32(0.0))), out=values)
