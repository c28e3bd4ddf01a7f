"""Competition and attraction: the mathematics of natural niches, as pure functions over per-sample scores.

Abrantes, Lange and Tang, "Competition and Attraction Improve Model Fusion", GECCO 2025 (arXiv:2508.16204).

Legend:
    P  members of an archive, i one of them; A and B are two parents
    N  samples, j one of them
    s  scores, float64, shape (P, N), in [0, 1]
    c  capacities, shape (N,): how much there is to win on a sample
    z  demand, shape (N,): the sum of all members' scores on a sample
    f  fitness, shape (P,)
    g  attraction, shape (P,)
    alpha  how hard members compete for a sample: 0 not at all, 1 they share it, more: they fight
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Vector = NDArray[np.float64]

Capacities = Literal["graded", "binary"]
"""`graded`: the best member's score on the sample; `binary`: 1."""

EPSILON = 1e-9
"""Keeps samples that nobody solves from dividing by zero, as the paper's epsilon does."""


def capacities(s: Scores, kind: Capacities = "graded") -> Vector:
    """Return the capacity of every sample, shape (N,).

    The paper has 1 for scores of 0 and 1, and the best score for graded ones. The best score alone covers both:
    where nobody solves a sample its capacity multiplies zeros.
    """
    c: Vector = s.max(axis=0) if kind == "graded" else np.ones(s.shape[1])
    return c


def values(c: Vector, z: Vector, alpha: float) -> Vector:
    """Return what a full score on each sample is worth, c_j / (z_j^alpha + epsilon), shape (N,)."""
    if alpha == 0:
        return c
    worth: Vector = c / ((z if alpha == 1 else z**alpha) + EPSILON)
    return worth


def winnings(s: Scores, worth: Vector, *, out: Scores | None = None) -> Vector:
    """Return what every member wins, sum_j worth_j s_ij, shape (P,); `out` may lend memory of shape (P, N)."""
    # Not a matrix product: a library's kernel may sum equal rows in different orders, and ties must be ties.
    f: Vector = np.multiply(s, worth, out=out).sum(axis=1)
    return f


def fitness(s: Scores, *, alpha: float = 1.0, kind: Capacities = "graded") -> Vector:
    """Return every member's fitness f_i = sum_j c_j s_ij / (z_j^alpha + epsilon), shape (P,).

    With alpha 1 and scores of 0 and 1 the fitnesses sum to the number of solved samples; with alpha 0 a fitness is
    the plain sum of scores times capacities, which for scores of 0 and 1 is the plain sum.

    Example:
        >>> fitness(np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).round(6).tolist()
        [1.5, 0.5]
    """
    return winnings(s, values(capacities(s, kind), s.sum(axis=0), alpha))


def attraction(s: Scores, first: int, *, kind: Capacities = "graded", worth: Vector | None = None) -> Vector:
    """Return how much every member attracts parent A, shape (P,).

    g(A, B) = sum_j c_j / (z_j + epsilon) max(s_Bj - s_Aj, 0): what B can do, A cannot, and few others can. The paper's
    formula has no exponent here; the authors' code has alpha, so the two agree at alpha 1. A does not attract
    itself.

    Args:
        s: scores of the members.
        first: index of parent A.
        kind: which capacities.
        worth: the `values` at alpha 1, shape (N,), where they are known.
    """
    gain = s - s[first]
    np.maximum(gain, 0.0, out=gain)
    gain *= values(capacities(s, kind), s.sum(axis=0), 1.0) if worth is None else worth
    g: Vector = gain.sum(axis=1)
    return g


def rescale(s: Scores) -> Scores:
    """Return scores of any range in [0, 1]: on every sample, minus the worst member's, over the members' range.

    A sample on which all members are equal gives 0 to all: it tells nothing, and is worth nothing.
    """
    low = s.min(axis=0)
    spread = s.max(axis=0) - low
    scaled: Scores = np.divide(s - low, spread, out=np.zeros_like(s), where=spread > 0)
    return scaled


def roulette(weights: Vector, unit: float) -> int:
    """Return an index drawn in proportion to weights, shape (P,), that are not negative; uniformly if all are 0.

    Args:
        weights: finite.
        unit: the draw, in [0, 1).
    """
    ends = weights.cumsum()
    if not ends[-1] > 0:
        return int(unit * len(weights))
    index = int(ends.searchsorted(unit * ends[-1], side="right"))
    # Rounding may lead beyond the end.
    return index if index < len(weights) else int(weights.nonzero()[0][-1])
