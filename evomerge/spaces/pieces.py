"""Individuals as piecewise mixtures of the sources, and how they are crossed without any weights.

An individual is Σ_k w_k θ_k + Σ_n c_n ε_n with coefficients that are constant over pieces of the weights: θ_k are the
sources, ε_n the noise of mutations. Spherical mixing of two such individuals is linear in both, with factors that
depend on their angle, and that follows from the Gram matrices of the sources. So a child is such an individual too.

Legend: S pieces, K sources, N noises, C chromosomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces.breeding import Angle
from evomerge.spaces.grams import Grams, Matrix, Positions

SMALLEST_SINE = 1e-6
"""Vectors whose angle has at most this sine are mixed linearly (as in the reference implementation)."""
OPPOSITE = 0.1
"""The same for vectors that point away from each other: there is no one arc between them, the factors are 1 / sine, and
rounding would blow a weight up. It happens to parts of very few weights."""
FADED = 1e-12
"""A noise this much weaker than the strongest one of an individual is dropped when it is crossed."""


@dataclass(frozen=True, eq=False, slots=True)
class Pieces:
    """An individual: coefficients that are constant from one end to the next.

    Two neighbouring pieces of one chromosome differ in some coefficient, so equal individuals have equal pieces.
    """

    ends: Positions
    """Where each piece ends: rising positions of `Grams`, the ends of all chromosomes among them; int64 (S,)."""
    coefficients: Matrix
    """Of the sources, then of the noises, one a row; float64 of shape (K + N, S)."""
    seeds: tuple[int, ...] = ()
    """The N noises, each a seed in [0, 2^64), rising."""

    def __eq__(self, other: object) -> bool:
        """Tell whether two individuals are the same, bit by bit."""
        if not isinstance(other, Pieces):
            return NotImplemented
        return (
            self.seeds == other.seeds
            and np.array_equal(self.ends, other.ends)
            and np.array_equal(self.coefficients, other.coefficients)
        )

    def __hash__(self) -> int:
        """Hash by value."""
        return hash((self.seeds, self.ends.tobytes(), self.coefficients.tobytes()))

    @property
    def num_sources(self) -> int:
        """K."""
        return len(self.coefficients) - len(self.seeds)

    @property
    def weights(self) -> Matrix:
        """Coefficients of the sources, float64 of shape (S, K)."""
        return self.coefficients[: self.num_sources].T

    @property
    def scales(self) -> Matrix:
        """Coefficients of the noises, float64 of shape (S, N)."""
        return self.coefficients[self.num_sources :].T


def founders(grams: Grams) -> tuple[Pieces, ...]:
    """Return the sources themselves, in order of declaration."""
    ends = grams.offsets[1:]
    return tuple(simplified(grams, ends, np.tile(row[:, None], len(ends))) for row in np.eye(len(grams.aliases)))


def simplified(grams: Grams, ends: Positions, coefficients: Matrix, seeds: tuple[int, ...] = ()) -> Pieces:
    """Return the individual of these pieces, with neighbours of one chromosome joined where they agree.

    Args:
        grams: of the sources.
        ends: as in `Pieces`.
        coefficients: as in `Pieces`.
        seeds: as in `Pieces`.
    """
    same = (coefficients[:, 1:] == coefficients[:, :-1]).all(axis=0)
    if same.any():
        same &= ~grams.is_end(ends[:-1])
        keep = np.append(~same, True)
        ends, coefficients = ends[keep], coefficients[:, keep]
    ends.flags.writeable = coefficients.flags.writeable = False
    return Pieces(ends, coefficients, seeds)


def cross(grams: Grams, first: Pieces, second: Pieces, *, splits: Sequence[int], mix: float, angle: Angle) -> Pieces:
    """Cross two individuals; see `BreedingSpace.cross`.

    What the weights of the noises come to is taken to be orthogonal to the sources and to each other, with a squared
    length of their number: so it is to about 1 / sqrt(size), and angles then need no weights.

    Raises:
        ValueError: for a wrong number of split points, or one outside of its chromosome.
    """
    bounds = _bounds(grams, splits)
    ends = _union(first.ends, second.ends, bounds)
    seeds = first.seeds if first.seeds == second.seeds else tuple(sorted({*first.seeds, *second.seeds}))
    one, two = _on(first, ends, seeds), _on(second, ends, seeds)
    # Even parts lie before a split, odd ones after it; some are empty.
    cuts = ends.searchsorted(bounds, side="right")
    lengths = cuts[1:] - cuts[:-1]
    full = lengths.nonzero()[0]
    mixes = [1.0 - mix if part % 2 else mix for part in full.tolist()]
    products = _products(grams, ends, one, two, cuts[full])
    rows = products.tolist() if angle == "part" else [products.sum(axis=0).tolist()] * len(mixes)
    factors = np.array([slerp(row, one_mix) for row, one_mix in zip(rows, mixes, strict=True)]).T
    factors = factors.repeat(lengths[full], axis=1)
    one *= factors[0]
    two *= factors[1]
    one += two
    if seeds:
        one, seeds = _without_faded(one, seeds, first.num_sources)
    return simplified(grams, ends, one, seeds)


def mutate(individual: Pieces, *, seed: int, scale: float) -> Pieces:
    """Add `scale` times the noise of a seed to all weights.

    Args:
        individual: what is mutated.
        seed: in [0, 2^64).
        scale: standard deviation, finite.

    Raises:
        ValueError: for a seed or a scale out of range.
    """
    if not 0 <= seed < 1 << 64 or not math.isfinite(scale):
        raise ValueError(f"expected a seed in [0, 2^64) and a finite scale, got {seed} and {scale}")
    if scale == 0:
        return individual
    seeds = tuple(sorted({*individual.seeds, seed}))
    coefficients = _on(individual, individual.ends, seeds)
    coefficients[individual.num_sources + seeds.index(seed)] += scale
    coefficients.flags.writeable = False
    return Pieces(individual.ends, coefficients, seeds)


def _bounds(grams: Grams, splits: Sequence[int]) -> Positions:
    """Return where parts end, with 0 in front: two parts a chromosome, before and after its split."""
    if len(splits) != len(grams.chromosomes):
        raise ValueError(
            f"expected one split point for each of {len(grams.chromosomes)} chromosomes, got {len(splits)}"
        )
    bounds = [0]
    for part, offset, split in zip(grams.chromosomes, grams.starts, splits, strict=True):
        if not 0 <= split <= part.positions:
            raise ValueError(f"expected a split point in [0, {part.positions}] of {part.name}, got {split}")
        bounds += [offset + split, offset + part.positions]
    return np.array(bounds, dtype=np.int64)


def _union(first: Positions, second: Positions, bounds: Positions) -> Positions:
    """Return all places where something ends, each once and in order."""
    ends = np.concatenate([first, second, bounds])
    ends.sort(kind="stable")
    keep = np.empty(len(ends), dtype=np.bool_)
    keep[0] = False  # position 0, which nothing ends at
    np.not_equal(ends[1:], ends[:-1], out=keep[1:])
    return ends[keep]


def _on(individual: Pieces, ends: Positions, seeds: tuple[int, ...]) -> Matrix:
    """Return a copy of an individual's coefficients, on finer pieces and with more noises."""
    rows = individual.coefficients.take(individual.ends.searchsorted(ends), axis=1)
    if seeds == individual.seeds:
        return rows
    sources = individual.num_sources
    wide = np.zeros((sources + len(seeds), len(ends)))
    wide[[*range(sources), *(sources + seeds.index(seed) for seed in individual.seeds)]] = rows
    return wide


def _products(grams: Grams, ends: Positions, one: Matrix, two: Matrix, starts: NDArray[np.intp]) -> Matrix:
    """Return ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩ of each part that is not empty, float64 of shape (parts, 3).

    Elementwise products and sums alone: their results do not depend on the width of a processor's registers, as those
    of a matrix product do, so that a replay elsewhere comes out the same.
    """
    rows, columns = grams.pairs
    gram = np.ascontiguousarray(grams.stretches(ends).T)
    left, right, other_left, other_right = (side.take(pair, axis=0) for side in (one, two) for pair in (rows, columns))
    terms = np.empty((3, *gram.shape))
    np.multiply(left, right, out=terms[0])
    np.multiply(other_left, other_right, out=terms[1])
    np.multiply(left, other_right, out=terms[2])
    right *= other_left
    terms[2] += right
    terms *= gram
    sums: Matrix = np.add.reduceat(terms, starts, axis=2)
    sums *= grams.multiples[:, :, None]
    sources = len(grams.aliases)
    result: Matrix = sums.sum(axis=1).T
    if len(one) > sources:
        sizes = np.diff(grams.weights_before(ends), prepend=0).astype(np.float64)
        noises = [np.sum(a[sources:] * b[sources:], axis=0) * sizes for a, b in ((one, one), (two, two), (one, two))]
        result = result + np.add.reduceat(np.stack(noises), starts, axis=1).T
    return result


def slerp(products: Sequence[float], mix: float) -> tuple[float, float]:
    """Return the factors of two vectors a and b that are mixed spherically.

    Args:
        products: ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩.
        mix: in [0, 1]; at 0 the factors are 1 and 0.
    """
    first, second, both = products
    if first * second > 0:
        omega = math.acos(max(-1.0, min(1.0, both / math.sqrt(first * second))))
        sine = math.sin(omega)
        if sine > (SMALLEST_SINE if both > 0 else OPPOSITE):
            return math.sin((1.0 - mix) * omega) / sine, math.sin(mix * omega) / sine
    return 1.0 - mix, mix


def _without_faded(mixed: Matrix, seeds: tuple[int, ...], sources: int) -> tuple[Matrix, tuple[int, ...]]:
    """Drop the noises that no float32 weight can show beside the strongest one."""
    strongest = np.abs(mixed[sources:]).max(axis=1)
    keep = strongest > FADED * strongest.max()
    if keep.all():
        return mixed, seeds
    rows = np.append(np.ones(sources, dtype=np.bool_), keep)
    return mixed[rows], tuple(seed for seed, kept in zip(seeds, keep, strict=True) if kept)
