"""Inner products of the sources over any stretch of their weights, known without the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.operators.block_grams import BlockGrams, block_size, num_blocks
from evomerge.spaces.breeding import Chromosome

Positions = NDArray[np.int64]
Matrix = NDArray[np.float64]


def chromosome(name: str, size: int) -> Chromosome:
    """Return a chromosome of `size` weights with its grid of split points."""
    return Chromosome(name, size, num_blocks(size))


@dataclass(frozen=True, eq=False)
class Grams:
    """Prefix sums of the Gram matrices of K sources over a grid of places, P blocks in all.

    The chromosomes stand one after the other; a *position* counts blocks from the beginning of the first. A chromosome
    of at most 65,536 weights has blocks of one weight: any split point is possible. A larger one has blocks of
    ceil(size / 65,536) weights, a deviation from the paper's UniformInt(0, D): its split points are 1/65,536 of it
    apart (100,000 weights of a model of 7 billion, so that most lie within a tensor).

    The sums are pairs of float64 (a rounded sum, and what rounding left out), so that the difference of two of them,
    the Gram of a stretch, is as exact for one block as for all.
    """

    aliases: tuple[str, ...]
    """The K sources, in order of declaration."""
    chromosomes: tuple[Chromosome, ...]
    prefix: Matrix
    """float64 of shape (P + 1, 2, K (K + 1) / 2): sums over the blocks before a position, upper triangles."""

    @classmethod
    def of_blocks(cls, aliases: Sequence[str], blocks: Mapping[str, tuple[int, Matrix]]) -> Grams:
        """Sum up the Grams of single blocks.

        Args:
            aliases: the K sources.
            blocks: chromosome -> number of weights, and the Grams from `BlockGrams.result`.
        """
        parts = tuple(chromosome(name, size) for name, (size, _) in blocks.items())
        grams = np.concatenate([one for _, one in blocks.values()])
        prefix = np.zeros((len(grams) + 1, 2, grams.shape[1]))
        prefix[1:, 0], prefix[1:, 1] = _running_sums(grams)
        return cls(tuple(aliases), parts, prefix)

    @classmethod
    def of_vectors(cls, aliases: Sequence[str], vectors: Mapping[str, Sequence[NDArray[np.float32]]]) -> Grams:
        """Compute the Grams of vectors in memory.

        Args:
            aliases: the K sources.
            vectors: chromosome -> one flat vector a source, float32 or float64.
        """
        blocks = {}
        for name, each in vectors.items():
            sums = BlockGrams(len(each), len(each[0]))
            sums.add(each)
            blocks[name] = (len(each[0]), sums.result())
        return cls.of_blocks(aliases, blocks)

    def __post_init__(self) -> None:
        """Check that the parts fit each other, and make the sums read-only.

        Raises:
            ValueError: when they do not.
        """
        shape = (int(self.offsets[-1]) + 1, 2, len(self.pairs[0]))
        if self.prefix.shape != shape or self.prefix.dtype != np.float64:
            raise ValueError(f"expected float64 of shape {shape}, got {self.prefix.dtype} of {self.prefix.shape}")
        self.prefix.flags.writeable = False

    @cached_property
    def offsets(self) -> Positions:
        """Where each chromosome begins, and at last where all end; int64 of shape (C + 1,)."""
        return np.cumsum([0, *(part.positions for part in self.chromosomes)], dtype=np.int64)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Position where each chromosome begins, as plain numbers."""
        return tuple(self.offsets[:-1].tolist())

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the upper triangle."""
        return np.triu_indices(len(self.aliases))

    @cached_property
    def multiples(self) -> Matrix:
        """What the terms of each entry of the upper triangle count in ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩; float64 (3, pairs).

        Off the diagonal an entry stands for two; the terms of ⟨a, b⟩ have both orders already.
        """
        rows, columns = self.pairs
        return np.where(rows == columns, [[1.0], [1.0], [0.5]], [[2.0], [2.0], [1.0]])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of sources, chromosomes and sums."""
        shape = repr((self.aliases, [(part.name, part.size) for part in self.chromosomes]))
        return hashlib.sha256(shape.encode() + np.ascontiguousarray(self.prefix, dtype="<f8").tobytes()).hexdigest()

    def is_end(self, positions: Positions) -> NDArray[np.bool_]:
        """Return whether a chromosome ends at each position."""
        found: NDArray[np.bool_] = self.offsets[np.searchsorted(self.offsets, positions)] == positions
        return found

    def stretches(self, ends: Positions) -> Matrix:
        """Return the Gram of each stretch between one end and the next.

        Args:
            ends: rising positions after 0, int64 of shape (S,).

        Returns:
            Upper triangles, float64 of shape (S, K (K + 1) / 2).
        """
        steps = self.prefix.take(ends, axis=0)
        steps[1:] -= steps[:-1].copy()
        return steps[:, 0] + steps[:, 1]

    @cached_property
    def sizes(self) -> Positions:
        """Number of weights of each chromosome, int64 of shape (C,)."""
        return np.array([part.size for part in self.chromosomes], dtype=np.int64)

    @cached_property
    def blocks(self) -> Positions:
        """Number of weights in a block of each chromosome, int64 of shape (C,)."""
        return np.array([block_size(part.size) for part in self.chromosomes], dtype=np.int64)

    def weights_before(self, ends: Positions) -> Positions:
        """Return how many weights, of all chromosomes, lie before each position after 0."""
        if len(self.chromosomes) == 1:
            only: Positions = np.minimum(ends * self.blocks[0], self.sizes[0])
            return only
        which = np.searchsorted(self.offsets[1:], ends)
        within = np.minimum((ends - self.offsets[which]) * self.blocks[which], self.sizes[which])
        found: Positions = (np.cumsum(self.sizes) - self.sizes)[which] + within
        return found


def _running_sums(terms: Matrix) -> tuple[Matrix, Matrix]:
    """Return the inclusive prefix sums along the first axis as pairs of float64, to about 100 bits.

    A scan by doubling (Hillis and Steele 1986), each addition an error-free one (Knuth's two-sum).
    """
    high, low = terms.copy(), np.zeros_like(terms)
    step = 1
    while step < len(terms):
        total = high[step:] + high[:-step]
        part = total - high[step:]
        lost = (high[step:] - (total - part)) + (high[:-step] - part) + (low[step:] + low[:-step])
        high[step:] = total + lost
        low[step:] = lost - (high[step:] - total)
        step *= 2
    return high, low
