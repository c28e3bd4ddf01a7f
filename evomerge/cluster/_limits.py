"""How long one attempt may take, learned from the attempts that succeeded."""

from __future__ import annotations

from collections import Counter

from evomerge.cluster.types import Job

LEARNED_AFTER = 8
"""Successes before a limit is learned: the first ones may be slow, with cold caches and files not read yet."""
FLOOR_S = 60.0
"""No limit is learned below this: a busy machine, or a node's slow disk, is no hang."""

_Kind = tuple[str, int | None]


class Limits:
    """Time limits of attempts, for each kind of job (split, size of the minibatch) on its own.

    Args:
        longest_s: no attempt may take longer.
        factor: of the longest success of its kind, the time that an attempt may take; None: always `longest_s`.
    """

    def __init__(self, longest_s: float, factor: float | None) -> None:
        self._longest_s = longest_s
        self._factor = factor
        self._successes: Counter[_Kind] = Counter()
        self._slowest_s: dict[_Kind, float] = {}

    def learn(self, job: Job, seconds: float) -> None:
        """Note that an attempt at a job succeeded and took so long."""
        kind = _kind(job)
        self._successes[kind] += 1
        self._slowest_s[kind] = max(seconds, self._slowest_s.get(kind, 0.0))

    def limit_s(self, job: Job) -> float:
        """Return how long an attempt at a job may take."""
        kind = _kind(job)
        if self._factor is None or self._successes[kind] < LEARNED_AFTER:
            return self._longest_s
        return min(self._longest_s, max(FLOOR_S, self._factor * self._slowest_s[kind]))


def _kind(job: Job) -> _Kind:
    return job.split, None if job.minibatch is None else job.minibatch.documents
