"""How single-objective searchers order outcomes."""

from __future__ import annotations

import math

from evomerge.search.scalar import Scalarize, scalarize
from evomerge.search.types import Outcome

Standing = tuple[int, float]
"""Sorts outcomes, best first."""
NOTHING_YET: Standing = (3, 0.0)


def standing(outcome: Outcome, rule: Scalarize) -> Standing:
    """Return where an outcome stands: feasible by objectives, then infeasible by violation, then the rest.

    Raises:
        ConfigError: when the scalarisation does not fit the objectives.
    """
    if outcome.state == "feasible" and outcome.objectives:
        score = scalarize(rule, outcome.objectives)
        if math.isfinite(score):
            return (0, -score)
    if outcome.state == "infeasible" and 0 < outcome.violation < math.inf:
        return (1, outcome.violation)
    return (2, 0.0)
