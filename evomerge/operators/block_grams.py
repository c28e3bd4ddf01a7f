"""Inner products of several long vectors, block by block, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_POSITIONS = 65_536
"""Most blocks of one vector."""


def block_size(size: int) -> int:
    """Return the length of a block of a vector of `size` elements: 1 up to `MAX_POSITIONS` elements."""
    return max(1, -(-size // MAX_POSITIONS))


def num_blocks(size: int) -> int:
    """Return the number of blocks of a vector of `size` elements; the last one may be shorter."""
    return -(-size // block_size(size))


class BlockGrams:
    """The Gram matrices of the blocks of K vectors that come stretch by stretch.

    Products of float32 numbers are exact in float64, and sums are pairwise within a stretch.

    Args:
        num_vectors: K, at least 1.
        size: elements of each vector.
    """

    def __init__(self, num_vectors: int, size: int) -> None:
        self._rows, self._columns = np.triu_indices(num_vectors)
        self._size = size
        self._block = block_size(size)
        self._done = 0
        self._sums = np.zeros((num_blocks(size), len(self._rows)))

    def add(self, vectors: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Add the next stretch of each vector: K arrays of one length, float32 or float64.

        Raises:
            ValueError: when there is more than `size` says.
        """
        doubles = [np.asarray(vector, dtype=np.float64).reshape(-1) for vector in vectors]
        first, last = self._done, self._done + len(doubles[0])
        if last > self._size:
            raise ValueError(f"the vectors have {self._size} elements, got {last}")
        if first == last:
            return
        block = first // self._block
        cuts = np.arange(block, -(-last // self._block)) * self._block - first
        cuts[0] = 0
        for pair, (row, column) in enumerate(zip(self._rows, self._columns, strict=True)):
            products = doubles[row] * doubles[column]
            sums = products if self._block == 1 else np.add.reduceat(products, cuts)
            self._sums[block : block + len(sums), pair] += sums
        self._done = last

    def result(self) -> NDArray[np.float64]:
        """Return the upper triangles, row by row: float64 of shape (blocks, K (K + 1) / 2).

        Raises:
            ValueError: when some of the vectors is still to come.
        """
        if self._done != self._size:
            raise ValueError(f"the vectors have {self._size} elements, but only {self._done} came")
        return self._sums
