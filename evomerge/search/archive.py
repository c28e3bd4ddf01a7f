"""The archive: the Pareto front over all feasible candidates, and its history; a pure view, no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.search.front import Front, gain, hypervolume
from evomerge.search.scalar import Scalarize, scalarize

MAX_OBJECTIVES = 5
"""Exact hypervolume grows steeply with the number of objectives, and nobody reads a larger front."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Entry:
    """One evaluated candidate on one split."""

    id: int
    objectives: tuple[float, ...]
    """Mean of each objective, all maximised; empty where nothing was measured."""
    stderrs: tuple[float, ...] = ()
    """Standard error of each mean, or empty."""
    feasible: bool = True


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """Where the search stood after an evaluation."""

    id: int
    """The candidate whose evaluation it was."""
    best: float | None
    """Highest scalarised objective of a feasible candidate so far; None before the first."""
    best_per_objective: tuple[float, ...] | None
    """Highest value of each objective among feasible candidates so far; None before the first."""
    hypervolume: float
    """Of the front so far; never falls."""


class Archive:
    """Every evaluated candidate of one split, its Pareto front (all objectives maximised), and the history.

    A candidate is on the front when no feasible candidate is at least as good in every objective and better
    in one; so candidates with equal objectives are on it together. Fronts are listed by id, whatever the
    order of adding.

    *Reference point of the hypervolume.* The one given; else it is fixed once, by the first feasible
    candidate that is added: 0 for an objective that is 0 or more there, as accuracies are, and twice the
    value for one that is negative there, as minimised ones are (written with "-"): twice the first
    candidate's cost (-1 where that cost is 0). Fixed for good, it makes the hypervolume's history
    monotone. Whatever is not better than the reference in every objective adds nothing.

    Args:
        objectives: the objectives' names, 1 to 5, in the order of values.
        scalarize: how `best` and the history see several objectives.
        reference: reference point, one value an objective.

    Raises:
        ConfigError: for no or too many objectives, or a reference of another length.

    Example:
        >>> archive = Archive(["math", "japanese"])
        >>> for number, scores in enumerate([(0.8, 0.2), (0.4, 0.1), (0.3, 0.9)]):
        ...     archive.add(number, scores)
        >>> archive.front(), archive.best(), archive.best_per_objective()
        ((0, 2), 2, {'math': 0, 'japanese': 2})
        >>> round(archive.hypervolume(), 3)
        0.37
    """

    def __init__(
        self,
        objectives: Sequence[str],
        *,
        scalarize: Scalarize = "mean",
        reference: Sequence[float] | None = None,
    ) -> None:
        if not 1 <= len(objectives) <= MAX_OBJECTIVES:
            raise ConfigError(f"fitness.objectives: give 1 to {MAX_OBJECTIVES} objectives, got {len(objectives)}")
        if not isinstance(scalarize, str) and len(scalarize) != len(objectives):
            raise ConfigError(
                f"search.scalarize: {len(scalarize)} weights for {len(objectives)} objectives; "
                "give one weight an objective"
            )
        self.objectives = tuple(objectives)
        self._scalarize = scalarize
        self._entries: dict[int, Entry] = {}
        self._front = Front()
        self._best: tuple[float, int] | None = None
        self._history: list[HistoryPoint] = []
        self._reference = None if reference is None else self._checked(reference, "reference point")

    def add(
        self,
        candidate_id: int,
        objectives: Sequence[float],
        stderrs: Sequence[float] = (),
        *,
        feasible: bool = True,
    ) -> None:
        """Add an evaluated candidate; an infeasible one counts in the history and never enters the front.

        Raises:
            ValueError: for an id that is here already, or a feasible candidate whose objectives are not
                finite or not as many as the archive's.
        """
        if candidate_id in self._entries:
            raise ValueError(f"candidate {candidate_id} is in the archive already; add each candidate once")
        values = self._checked(objectives, f"candidate {candidate_id}") if feasible else ()
        means = values or tuple(objectives)
        self._entries[candidate_id] = Entry(candidate_id, means, tuple(stderrs), feasible)
        self._record(candidate_id, values, self._enter(candidate_id, values) if feasible else 0.0)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every candidate, in the order of adding."""
        return tuple(self._entries.values())

    @property
    def history(self) -> tuple[HistoryPoint, ...]:
        """Where the search stood after each evaluation, in the order of adding."""
        return tuple(self._history)

    @property
    def latest(self) -> HistoryPoint | None:
        """Where the search stands; None before the first evaluation."""
        return self._history[-1] if self._history else None

    @property
    def reference(self) -> tuple[float, ...] | None:
        """The hypervolume's reference point; None until the first feasible candidate fixes it."""
        return self._reference

    def entry(self, candidate_id: int) -> Entry:
        """Return a candidate's entry.

        Raises:
            KeyError: when it is not in the archive.
        """
        return self._entries[candidate_id]

    def front(self) -> tuple[int, ...]:
        """Return the ids of the Pareto front, sorted."""
        return tuple(sorted(self._front.ids))

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Return the volume that the front dominates above a reference point (by default the archive's own).

        That over the archive's own is the sum of what each newcomer added, and equal to the exact one but for rounding.

        Raises:
            ValueError: for a reference of the wrong length, or one that is not finite.
        """
        if reference is None:
            return self._history[-1].hypervolume if self._history else 0.0
        return hypervolume(self._front.points, self._checked(reference, "reference point"))

    def best(self, rule: Scalarize | None = None) -> int | None:
        """Return the feasible candidate with the highest scalarised objective (ties: lowest id), or None."""
        if rule is None:
            return None if self._best is None else -self._best[1]
        feasible = [entry for entry in self._entries.values() if entry.feasible]
        return max(feasible, key=lambda e: (scalarize(rule, e.objectives), -e.id)).id if feasible else None

    def best_per_objective(self) -> dict[str, int]:
        """Return the best feasible candidate of each objective (ties: lowest id); may be empty."""
        if not len(self._front):
            return {}
        ids, points = self._front.ids, self._front.points
        winners = (np.flatnonzero(points[:, index] == points[:, index].max()) for index in range(points.shape[1]))
        return {name: min(ids[row] for row in rows) for name, rows in zip(self.objectives, winners, strict=True)}

    def knee(self) -> int | None:
        """Return the point of the front farthest from the line between its extremes; None if empty.

        With M objectives, the line is the hyperplane through the M extremes (the best of each objective),
        after each objective is scaled to the front's range (for two objectives the scaling changes nothing).
        Where the extremes span no hyperplane, it is the one through the scaled axes' ends. Points at equal
        distance: the one on the better side, then the one that scalarises highest, then the lowest id. (Das
        1999, "On characterizing the knee of the Pareto curve".)
        """
        ids = self.front()
        if not ids:
            return None
        points = np.array([self._entries[key].objectives for key in ids])
        low, high = points.min(axis=0), points.max(axis=0)
        varies = high > low
        if not varies.any():
            return ids[0]
        scaled = (points[:, varies] - low[varies]) / (high - low)[varies]
        distances = _distances_from_extremes(scaled)
        scores = [scalarize(self._scalarize, self._entries[key].objectives) for key in ids]
        # Rounded, because the extremes lie on the hyperplane only to rounding.
        keys = [
            (round(abs(distance), 12), round(distance, 12), score, -key)
            for distance, score, key in zip(distances.tolist(), scores, ids, strict=True)
        ]
        return -max(keys)[-1]

    def _checked(self, values: Sequence[float], what: str) -> tuple[float, ...]:
        if len(values) != len(self.objectives):
            raise ValueError(f"{what}: expected {len(self.objectives)} objectives, got {len(values)}")
        numbers = tuple(float(value) for value in values)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{what}: objectives must be finite, got {numbers}; mark the candidate infeasible")
        return numbers

    def _enter(self, candidate_id: int, values: tuple[float, ...]) -> float:
        """Put a feasible candidate on the front if it belongs there; return what it adds to the hypervolume."""
        if self._reference is None:
            self._reference = tuple(map(_default_reference, self.objectives, values))
        before = self._front.points
        covered = self._front.covers(values)
        self._front.add(candidate_id, values)
        return 0.0 if covered else gain(before, values, self._reference)

    def _record(self, candidate_id: int, values: tuple[float, ...], added: float) -> None:
        last = self._history[-1] if self._history else HistoryPoint(candidate_id, None, None, 0.0)
        best, per_objective, volume = last.best, last.best_per_objective, last.hypervolume
        if values:
            score = scalarize(self._scalarize, values)
            best = score if best is None else max(best, score)
            self._best = max(self._best or (score, -candidate_id), (score, -candidate_id))
            highest = tuple(map(max, values, per_objective)) if per_objective else values
            # Most evaluations better nothing: their points share what they have, for a run has tens of thousands.
            per_objective = per_objective if per_objective == highest else highest
        self._history.append(HistoryPoint(candidate_id, best, per_objective, volume + added if added else volume))


def _default_reference(name: str, value: float) -> float:
    if value == 0 and name.startswith("-"):
        return -1.0
    return 0.0 if value >= 0 else 2.0 * value


def _distances_from_extremes(points: Vector) -> Vector:
    """Return the signed distance of each point, shape (P,), from the hyperplane through the extremes.

    Args:
        points: shape (P, M), scaled to [0, 1]; positive distances lie on the better side.
    """
    num_objectives = points.shape[1]
    extremes = points[points.argmax(axis=0)]
    # The hyperplane is {x : normal . x = 1}; it is one exactly where the extremes are linearly independent.
    if np.linalg.matrix_rank(extremes) == num_objectives:
        normal = np.linalg.solve(extremes, np.ones(num_objectives))
    else:
        normal = np.ones(num_objectives)
    distances: Vector = (points @ normal - 1.0) / np.linalg.norm(normal)
    return distances
