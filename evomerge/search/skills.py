"""Who can do what: coverage, entropy, owners, clusters of samples and complementary parents, as pure functions.

Legend: P members, N samples, scores scores per sample, float64, in [0, 1]. Any set of scored candidates will do: an
archive, a front, the sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.search.competition import Scores, Vector, attraction

NOBODY = -1
"""The owner of a sample on which every score is 0."""


def coverage(scores: Scores) -> float:
    """Return the mean over samples of the best member's score: for scores of 0 and 1, the share that anyone solves."""
    return float(scores.max(axis=0).mean())


def entropy(scores: Scores) -> float:
    """Return how much members differ: the mean over samples of the entropy of solving one, in bits, in [0, 1].

    With p_j the members' mean score on sample j, the mean of -p log2 p - (1 - p) log2 (1 - p): 0 where all members
    solve the same samples, 1 where half of them solve each.
    """
    solved = scores.mean(axis=0)
    terms = [np.where(p > 0, -p * np.log2(np.where(p > 0, p, 1.0)), 0.0) for p in (solved, 1.0 - solved)]
    return float((terms[0] + terms[1]).mean())


def shares(scores: Scores) -> Scores:
    """Return how competition divides each sample, s_ij / z_j, shape (P, N): columns sum to 1, or are 0 if unsolved."""
    demand = scores.sum(axis=0)
    sharescores: Scores = np.divide(scores, demand, out=np.zeros_like(scores), where=demand > 0)
    return sharescores


def owners(scores: Scores) -> NDArray[np.int64]:
    """Return the member with the largest share of each sample, shape (N,), or `NOBODY`.

    Among members with equal shares it is the one that has least elsewhere (the specialist), then the first: so a
    sample that all solve does not go to the first by default.
    """
    total = shares(scores).sum(axis=1)
    by_total = np.argsort(total, kind="stable")
    owner = by_total[np.argmax(scores[by_total], axis=0)]
    return np.where(scores.max(axis=0) > 0, owner, NOBODY).astype(np.int64)


def clusters(scores: Scores, count: int) -> NDArray[np.int64]:
    """Return the cluster of each sample, shape (N,): samples on which the same members do well lie together.

    Lloyd's k-means on the columns, started from the samples that are farthest from each other (Gonzalez 1985), with
    no random number. Clusters are numbered from 0 by falling mean score, and are at most `count`: fewer where there
    are fewer different columns.

    Args:
        scores: the scores.
        count: clusters at most, at least 1.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"there must be at least one cluster, got {count}")
    points = np.ascontiguousarray(scores.T)
    centres = _far_apart(points, count)
    labels = np.zeros(len(points), dtype=np.int64)
    for _ in range(100):
        distances = np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
        nearest = distances.argmin(axis=1)
        if np.array_equal(nearest, labels):
            break
        labels = nearest
        centres = np.stack([points[labels == k].mean(axis=0) for k in np.unique(labels)])
        labels = np.unique(labels, return_inverse=True)[1]
    means = [points[labels == k].mean() for k in range(int(labels.max()) + 1)]
    rank = np.argsort(np.argsort([-mean for mean in means], kind="stable"), kind="stable")
    return rank[labels].astype(np.int64)


def _far_apart(points: Scores, count: int) -> Scores:
    """Return up to `count` different points: the best solved sample, then always the one farthest from those before."""
    chosen = [int(points.mean(axis=1).argmax())]
    distances = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and distances.max() > 0:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return points[chosen]


def attraction_matrix(scores: Scores) -> Scores:
    """Return how much member B attracts member A, g[A, B], shape (P, P), with zeros on the diagonal."""
    return np.stack([attraction(scores, first) for first in range(len(scores))])


@dataclass(frozen=True, slots=True)
class Pair:
    """Two members and what they could reach together."""

    first: int
    second: int
    union: float
    """Mean over samples of the better one's score: the coverage of the two."""
    gain: float
    """The union minus the better one's mean score."""


def complementary(scores: Scores) -> list[Pair]:
    """Return all pairs of members, those first whose union gains most over the better of the two."""
    means: Vector = scores.mean(axis=1)
    pairs = []
    for first in range(len(scores)):
        for second in range(first + 1, len(scores)):
            union = float(np.maximum(scores[first], scores[second]).mean())
            pairs.append(Pair(first, second, union, union - float(max(means[first], means[second]))))
    return sorted(pairs, key=lambda pair: (-pair.gain, -pair.union))
