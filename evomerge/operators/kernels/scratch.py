"""Vectors for what lies between the inputs and the result of a span."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Scratch:
    """Gives out float32 vectors, the same ones for each span: what one span leaves in the cache the next overwrites."""

    __slots__ = ("_device", "_next", "_vectors")

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._vectors: list[Tensor] = []
        self._next = 0

    def over(self, parts: Iterator[tuple[int, int]]) -> Iterator[slice]:
        """Yield spans as slices; with each, all vectors are free again."""
        for start, stop in parts:
            self._next = 0
            yield slice(start, stop)

    def take(self, length: int) -> Tensor:
        """Return a vector of uninitialised float32, shape (length,), that nobody else has until the next span."""
        if self._next == len(self._vectors):
            self._vectors.append(torch.empty(length, device=self._device))
        vector = self._vectors[self._next]
        if len(vector) < length:
            vector = self._vectors[self._next] = torch.empty(length, device=self._device)
        self._next += 1
        return vector if len(vector) == length else vector[:length]


def accumulate(total: Tensor | None, values: Tensor, factor: float, scratch: Scratch | None) -> Tensor:
    """Return total + factor·values in `total`, or factor·values in a new vector; `values` is not changed."""
    if total is not None:
        return total.add_(values, alpha=factor)
    return torch.mul(values, factor, out=None if scratch is None else scratch.take(len(values)))
