"""What searchers that cross individuals have in common: founders, random merges, children."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field

from evomerge import seeds
from evomerge.documents import StrictModel
from evomerge.errors import ConfigError
from evomerge.search.ledger import Ledger
from evomerge.search.types import Candidate
from evomerge.spaces.breeding import BreedingSpace
from evomerge.spaces.types import Genome, Space

Individual = Any
"""Whatever the space breeds: it alone looks inside."""


class BreedingOptions(StrictModel):
    """How children come about."""

    crossover: bool = True
    """Off: a child is a mutated copy of one parent."""
    split: bool = True
    """Whether each chromosome is split at a random point, with the mixing ratio turned round behind it; off: one ratio
    for all of it."""
    angle: Literal["whole", "part"] = "whole"
    """Spherical mixing by the angle between whole parents, as in the authors' code, with which the published numbers
    came about, or between their parts, as the paper's formula reads. Siblings of one base are so nearly parallel that
    it hardly matters; in unrelated parents a short part's angle is mostly chance, hence the default."""
    mutation: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise on every weight of a child: 0.01 in the paper's search from scratch, and 0 for
    trained sources, which noise only spoils."""
    warm_up: int = Field(default=0, ge=0)
    """So many random merges of the sources come first. The paper's language models had up to 50; the digits had none,
    and competition alone was the faster start there."""


class Breeder:
    """Issues the sources themselves first, then children.

    Random numbers come from (seed, searcher, candidate id); the noise of a mutation from a seed of its own.

    Args:
        space: a space that breeds.
        options: how children come about.
        seed: of the search.
        name: of the searcher, for errors and origins.

    Raises:
        ConfigError: for a space that does not breed, fewer than two sources, or children that cannot be new.
    """

    def __init__(self, space: Space, options: BreedingOptions, *, seed: int, name: str) -> None:
        self._space = _breeding(space, name)
        self._founders: tuple[Individual, ...] = tuple(self._space.founders())
        if len(self._founders) < 2:
            raise ConfigError(
                f"sources: {name} crosses them, and there is {len(self._founders)}; give at least two sources"
            )
        if not options.crossover and not options.mutation:
            raise ConfigError(
                "search.options.crossover: without it, and without mutation, every child is a copy of its parent; "
                "set search.options.mutation"
            )
        self._options = options
        self._seed = seed
        self._key = seeds.derive(seed, name)
        self._name = name
        self._ledger = Ledger(space)
        self._open: dict[int, Individual] = {}

    @property
    def num_founders(self) -> int:
        """How many sources there are."""
        return len(self._founders)

    @property
    def is_starting(self) -> bool:
        """Whether children are random merges of the founders: in the warm-up, and while a founder is open."""
        warm = len(self._founders) + self._options.warm_up
        return self._ledger.next_id < warm or any(id_ in self._open for id_ in range(len(self._founders)))

    def draws(self) -> seeds.Draws:
        """Return the random numbers of the next candidate."""
        return seeds.Draws(self._key, self._ledger.next_id)

    def start(self) -> Candidate:
        """Return the next founder; when all were asked, a random merge of two of them."""
        id_ = self._ledger.next_id
        if id_ < len(self._founders):
            return self._issue(self._founders[id_], "source", ())
        draws = self.draws()
        first = draws.integer(len(self._founders))
        second = (first + 1 + draws.integer(len(self._founders) - 1)) % len(self._founders)
        parents = {first: self._founders[first], second: self._founders[second]}
        return self.child(parents, draws, "random merge")

    def child(self, parents: dict[int, Individual], draws: seeds.Draws, origin: str = "child") -> Candidate:
        """Return a child of parents by candidate id: of the first and the last one, or a copy of the first.

        Args:
            parents: one or two; one alone has a copy of itself as its child.
            draws: the random numbers of this candidate, from which the parents were drawn.
            origin: what to call it.
        """
        ids, individuals = list(parents), list(parents.values())
        if self._options.crossover:
            child = self._cross(individuals[0], individuals[-1], draws)
        else:
            child, ids = individuals[0], ids[:1]
        if self._options.mutation:
            noise = seeds.derive(self._seed, "mutation", self._ledger.next_id)
            child = self._space.mutate(child, seed=noise, scale=self._options.mutation)
        return self._issue(child, origin, tuple(ids))

    def individual(self, genome: Genome) -> Individual:
        """Return the individual of a genome that another searcher made."""
        return self._space.individual(genome)

    def close(self, candidate: Candidate) -> Individual:
        """Take note that a candidate was told, and return its individual.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
        """
        self._ledger.close(candidate)
        return self._open.pop(candidate.id)

    def _cross(self, first: Individual, second: Individual, draws: seeds.Draws) -> Individual:
        mix = draws.random()
        splits: Sequence[int] = [part.positions for part in self._space.chromosomes]
        if self._options.split:
            splits = [draws.integer(positions + 1) for positions in splits]
        return self._space.cross(first, second, splits=splits, mix=mix, angle=self._options.angle)

    def _issue(self, individual: Individual, origin: str, parents: tuple[int, ...]) -> Candidate:
        genome = self._space.genome(individual)
        candidate = self._ledger.issue(genome, origin=f"{self._name} {origin}", parents=parents)
        if candidate.genome is not genome:  # a source is held
            individual = self._space.individual(candidate.genome)
        self._open[candidate.id] = individual
        return candidate


def _breeding(space: Space, name: str) -> BreedingSpace[Individual]:
    if not hasattr(space, "cross"):
        raise ConfigError(
            f"search.searcher: {name} crosses individuals, and a space of this kind has none; "
            "set space.kind: piecewise, or take a searcher of numbers, such as cma_es"
        )
    return cast("BreedingSpace[Individual]", space)
