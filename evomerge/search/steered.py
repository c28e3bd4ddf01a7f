"""A search that a person steers: recipes of theirs among its candidates, and sources held at a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evomerge.search.ledger import Ledger
from evomerge.search.portfolio import Listener
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces.held import HeldSpace
from evomerge.spaces.types import Genome

INJECTED = "injected"
"""The origin of a candidate that a person gave."""


class Steered:
    """A searcher that adopts candidates and holds sources; without either it asks what its searcher asks.

    It is a function of its seed and of the order of asks, tells, adoptions and holds. Candidates are numbered in the
    order of asking and adopting. A searcher that listens (natural niches, MAP-Elites, NSGA-II, TPE, and the portfolios
    and stages that hold others) hears the outcome of an adopted candidate; any other goes on without.

    Args:
        searcher: at its start.
        space: what it searches, the same object.
    """

    def __init__(self, searcher: Searcher, space: HeldSpace) -> None:
        self.searcher = searcher
        """Who proposes; it has numbers of its own."""
        self._space = space
        self._ledger = Ledger(space)
        self._ids: list[int] = []
        self._open: dict[int, Candidate | None] = {}
        self._generation = 0

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates; fewer (or none) while it must first be told open outcomes."""
        return [self._issue(inner) for inner in self.searcher.ask(n)]

    def adopt(self, genome: Genome) -> Candidate:
        """Return a new candidate that a person gave; it is told as the others are.

        Args:
            genome: of the space; a source that is held is not held in it.
        """
        candidate = self._ledger.issue(genome, origin=INJECTED, generation=self._generation, settled=True)
        self._open[candidate.id] = None
        return candidate

    def hold(self, source: str, weight: float | None) -> None:
        """Pin the weight of a source in what is asked from now on; None frees it.

        Raises:
            ConfigError: for a source whose weight does not vary, or a weight outside of its range.
        """
        self._space.hold(source, weight)

    @property
    def held(self) -> Mapping[str, float]:
        """Source -> what its weight is pinned to."""
        return self._space.held

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the searcher cannot take the outcome.
        """
        self._ledger.close(candidate)
        inner = self._open.pop(candidate.id)
        if inner is not None:
            self.searcher.tell(inner, outcome)
        elif isinstance(self.searcher, Listener):
            self.searcher.hear(replace(candidate, id=-1 - candidate.id), outcome)

    @property
    def finished(self) -> str | None:
        """Why no further candidate will come, or None."""
        return self.searcher.finished

    def status(self) -> dict[str, float | int | str]:
        """Return the searcher's figures."""
        return self.searcher.status()

    def _issue(self, inner: Candidate) -> Candidate:
        candidate = self._ledger.issue(
            inner.genome,
            origin=inner.origin,
            generation=inner.generation,
            parents=tuple(self._ids[parent] if parent >= 0 else -1 - parent for parent in inner.parents),
            settled=True,
        )
        self._ids.append(candidate.id)
        self._open[candidate.id] = inner
        self._generation = inner.generation
        return candidate
