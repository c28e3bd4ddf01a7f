"""Natural niches (M2N2): merges that compete for samples and pair with those that can what they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evomerge.errors import ConfigError
from evomerge.search.breeder import Breeder, BreedingOptions, Individual
from evomerge.search.competition import Scores, Vector, roulette
from evomerge.search.niches import Niches
from evomerge.search.options import parse_options
from evomerge.search.sample_rows import SampleRows
from evomerge.search.scalar import Scalarize
from evomerge.search.skills import coverage, entropy
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Space


class NaturalNichesOptions(BreedingOptions):
    """Options of natural niches; the defaults are the paper's."""

    archive: int = Field(default=20, ge=2)
    """Members at most. A smaller archive is faster at first and ends lower: let it grow with the budget."""
    alpha: float = Field(default=1.0, ge=0, le=10)
    """Exponent of the competition: 1 shares each sample among those that solve it, 0 is no competition, above 1 they
    fight for it and all lose."""
    attraction: bool = True
    """Whether the second parent is drawn by what it can do and the first cannot; off: by fitness, like the first.
    Without it and with alpha 0, this is the genetic algorithm."""
    capacities: Literal["graded", "binary"] = "graded"
    """How much there is to win on a sample: the best member's score, or 1. For scores of 0 and 1 it is the same."""
    normaliser: Literal["min_max"] | None = None
    """How scores outside [0, 1] are brought there; `min_max`: on every sample, minus the archive's worst score, over
    its range."""
    metrics: tuple[str, ...] = ()
    """Whose scores per sample compete, laid end to end; with a minus in front, less is better. Left out: those of the
    objectives that are to be large."""


class NaturalNiches:
    """Steady-state evolution by competition and attraction.

    Abrantes, Lange and Tang, "Competition and Attraction Improve Model Fusion", GECCO 2025 (arXiv:2508.16204),
    section 3. Members of the archive share what there is to win on each sample; a parent is drawn by its share, the
    other by what it has to offer to the first; the child competes with all members, and the weakest of P + 1 leaves.
    The archive starts with the sources, which are asked first. Children are asked for at any time, whatever is still
    open, so that `ask(n)` always gives n; the archive changes in the order in which outcomes are told.

    Deviations from the authors' code: free slots are free, not models of zeros; a parent that nobody attracts is paired
    with any other member, where the code divides by zero; members without any score are drawn with equal chances;
    candidates that are infeasible or failed are never members, and as long as fewer than two sources or children are,
    children are random merges of the sources.

    Args:
        space: a space that breeds.
        seed: of every random number.
        options: as `NaturalNichesOptions`.
        scalarize: not used: samples compete, not objectives.
        metrics: whose scores per sample compete where the options do not say: those of these that have any.

    Raises:
        ConfigError: for a space that does not breed, fewer than two sources, an archive smaller than their number, or
            an option that does not exist.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",  # noqa: ARG002  the constructor of every searcher
        metrics: Sequence[str] = (),
    ) -> None:
        self._options = parse_options(NaturalNichesOptions, options)
        self._breeder = Breeder(space, self._options, seed=seed, name="natural_niches")
        if self._options.archive < self._breeder.num_founders:
            raise ConfigError(
                f"search.options.archive: {self._options.archive} members, and {self._breeder.num_founders} sources "
                "that start in it; make it at least as large"
            )
        self._rows = SampleRows(self._options.metrics, default=metrics, unit=self._options.normaliser is None)
        self._niches = Niches(
            self._options.archive,
            alpha=self._options.alpha,
            capacities=self._options.capacities,
            normaliser=self._options.normaliser,
        )
        self._members: dict[int, Individual] = {}
        self._num_offered = 0
        self._num_accepted = 0

    def ask(self, n: int) -> list[Candidate]:
        """Return `n` new candidates."""
        return [self._next() for _ in range(n)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: for scores that cannot compete; nothing has changed then.
        """
        row = self._rows.row(candidate.id, outcome) if outcome.state == "feasible" else None
        individual = self._breeder.close(candidate)
        self._num_offered += 1
        if row is not None:
            self._num_accepted += self._offer(candidate.id, individual, row)

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Let a candidate of another searcher, whose id is negative, compete for a place in the archive.

        Raises:
            ConfigError: as `tell` does.
        """
        if outcome.state == "feasible":
            row = self._rows.row(candidate.id, outcome)
            self._offer(candidate.id, self._breeder.individual(candidate.genome), row)

    @property
    def finished(self) -> str | None:
        """None: there is always another child."""
        return None

    @property
    def members(self) -> tuple[int, ...]:
        """Ids of the candidates in the archive, by slot; those of other searchers have ids below 0."""
        return self._niches.ids

    @property
    def scores(self) -> Scores:
        """Their scores per sample, shape (members, samples), by slot; not to be written to."""
        return self._niches.scores

    def status(self) -> dict[str, float | int | str]:
        """Return the archive's size, its coverage and entropy, and the share of told candidates that got in."""
        figures: dict[str, float | int | str] = {"archive": len(self._niches)}
        if len(self._niches):
            competing = self._niches.competing
            figures |= {"coverage": coverage(self._niches.scores), "entropy": entropy(competing)}
        return {**figures, "accepted": self._num_accepted / max(1, self._num_offered)}

    def _offer(self, id_: int, individual: Individual, row: Vector) -> bool:
        """Let an individual compete; return whether it is a member now."""
        left = self._niches.offer(id_, row)
        if left == id_:
            return False
        self._members[id_] = individual
        if left is not None:
            del self._members[left]
        return True

    def _next(self) -> Candidate:
        if self._breeder.is_starting or len(self._niches) < 2:
            return self._breeder.start()
        draws = self._breeder.draws()
        niches = self._niches
        first = roulette(niches.fitness, draws.random())
        second = first
        if self._options.crossover:
            second = self._partner(first, draws.random())
        ids = (niches.ids[first], niches.ids[second])
        return self._breeder.child({id_: self._members[id_] for id_ in ids}, draws)

    def _partner(self, first: int, unit: float) -> int:
        if not self._options.attraction:
            return roulette(self._niches.fitness, unit)
        weights = self._niches.attraction(first)
        if not weights.any():
            weights = np.ones(len(weights))
            weights[first] = 0.0
        return roulette(weights, unit)
