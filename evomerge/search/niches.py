"""The archive of natural niches: members that compete for samples, one replacement at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.search.competition import (
    Capacities,
    Scores,
    Vector,
    attraction,
    capacities,
    fitness,
    rescale,
    values,
    winnings,
)

Normaliser = Literal["min_max"]
"""`min_max`: on every sample, minus the archive's worst score, over its range."""


class Niches:
    """Up to `size` members and their per-sample scores; each newcomer competes, and the weakest of all leaves.

    It holds scores and the members' ids, nothing else: a searcher keeps the individuals, and a report can follow an
    archive through a journal. The order of offers alone determines its state.

    Args:
        size: members at most, P.
        alpha: exponent of the competition.
        capacities: how much there is to win on a sample.
        normaliser: how scores outside [0, 1] are brought there; None: they are not.
    """

    def __init__(
        self,
        size: int,
        *,
        alpha: float = 1.0,
        capacities: Capacities = "graded",
        normaliser: Normaliser | None = None,
    ) -> None:
        self._size = size
        self._alpha = alpha
        self._capacities: Capacities = capacities
        self._normaliser = normaliser
        self._ids: list[int] = []
        self._rows: Scores = np.zeros((0, 0))
        self._product = self._rows
        self._totals: tuple[Vector, Vector] | None = None
        self._fitness: Vector | None = None
        self._attraction: dict[int, Vector] = {}

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The members, by slot."""
        return tuple(self._ids)

    @property
    def scores(self) -> Scores:
        """The members' scores as they were offered, shape (members, samples), by slot; not to be written to."""
        return self._rows[: len(self)]

    @property
    def competing(self) -> Scores:
        """The members' scores as they compete: normalised among the members."""
        return self._in_range(self.scores)

    @property
    def fitness(self) -> Vector:
        """The members' fitness, shape (members,)."""
        if self._fitness is None:
            self._fitness = winnings(self.competing, values(*self._capacity_and_demand(), self._alpha))
        return self._fitness

    def attraction(self, slot: int) -> Vector:
        """Return how much each member attracts the one in a slot, shape (members,); not to be written to."""
        if slot not in self._attraction:
            worth = values(*self._capacity_and_demand(), 1.0)
            self._attraction[slot] = attraction(self.competing, slot, worth=worth)
        return self._attraction[slot]

    def offer(self, id_: int, row: Vector) -> int | None:
        """Let a newcomer compete; return who left: a member, the newcomer itself (rejected), or None.

        While there is a free slot nobody leaves. After that the newcomer joins, demand and fitness are computed anew
        over P + 1, and the least fit leaves. Of equals the one in the lowest slot leaves, and the newcomer comes
        last, so that an equally good newcomer displaces a member, as in the authors' code: neutral changes drift.

        Args:
            id_: the newcomer.
            row: its scores, shape (samples,), the same samples for everybody.
        """
        count = len(self)
        if not count:
            self._rows = np.zeros((self._size + 1, len(row)))
            self._product = np.empty_like(self._rows)
        self._rows[count] = row
        if count < self._size:
            self._ids.append(id_)
            self._forget()
            return None
        worst = int(np.argmin(self._fitness_of_all(row)))
        if worst == count:
            return id_
        left, self._ids[worst] = self._ids[worst], id_
        self._rows[worst] = row
        self._forget()
        return left

    def _fitness_of_all(self, row: Vector) -> Vector:
        """Return the fitness of the members and of a newcomer, which stands behind them."""
        if self._normaliser is not None:
            return fitness(self._in_range(self._rows), alpha=self._alpha, kind=self._capacities)
        # The members' sums change seldom; with one row more they are, bit by bit, those over all.
        c, z = self._capacity_and_demand()
        if self._capacities == "graded":
            c = np.maximum(c, row)
        return winnings(self._rows, values(c, z + row, self._alpha), out=self._product)

    def _capacity_and_demand(self) -> tuple[Vector, Vector]:
        """Return capacities and demand among the members."""
        if self._totals is None:
            self._totals = capacities(self.competing, self._capacities), self.competing.sum(axis=0)
        return self._totals

    def _forget(self) -> None:
        """Drop what was computed of the members, who have changed."""
        self._totals = self._fitness = None
        self._attraction = {}

    def _in_range(self, rows: Scores) -> Scores:
        return rescale(rows) if self._normaliser == "min_max" else rows
