"""The best so far, and whether an outcome is progress."""

from __future__ import annotations

import math

from evomerge.search.front import Front
from evomerge.search.ranking import NOTHING_YET, standing
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome


class Progress:
    """Follows outcomes as they are told.

    Args:
        scalarize: how several objectives are seen as one number.
    """

    def __init__(self, scalarize: Scalarize) -> None:
        self._scalarize = scalarize
        self._best = (NOTHING_YET, -1)
        self._front = Front()
        self.best: Candidate | None = None
        """The feasible candidate of highest scalarised objective, the earlier of equals."""

    def add(self, candidate: Candidate, outcome: Outcome) -> bool:
        """Take note of an outcome, and tell whether it is progress.

        It is where it is feasible and no outcome before it is at least equal in every objective.

        Raises:
            ConfigError: when the scalarisation does not fit the objectives.
        """
        if outcome.state != "feasible" or not all(map(math.isfinite, outcome.objectives)):
            return False
        rank = (standing(outcome, self._scalarize), candidate.id)
        if rank < self._best:
            self._best, self.best = rank, candidate
        return not self._front.covers(outcome.objectives) and self._front.add(candidate.id, outcome.objectives)
