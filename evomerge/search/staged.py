"""Search in stages: one part of the genome at a time, the rest held at the best found so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.recipe import Recipe
from evomerge.search.ledger import Ledger
from evomerge.search.ranking import NOTHING_YET, standing
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces.types import Dimension, Genome, Space


class PartOfSpace:
    """A space in which one part of another one varies.

    Args:
        space: the whole space.
        part: which of its dimensions vary; their conditions are on each other alone.
        held: a genome of the whole space, which gives everything else, and where the part starts.
    """

    def __init__(self, space: Space, part: slice, held: Genome) -> None:
        self._space = space
        self._part = part
        self._held = held

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions of the part."""
        return self._space.dimensions[self._part]

    @property
    def start(self) -> Genome:
        """The part of the held genome."""
        return self._held[self._part]

    def whole(self, genome: Genome) -> Genome:
        """Return the genome of the whole space of one of the part."""
        return (*self._held[: self._part.start], *genome, *self._held[self._part.stop :])

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        return self._space.decode(self.whole(genome))

    def encode(self, recipe: Recipe) -> Genome:
        """Return the part of the genome of a recipe of the whole space.

        Raises:
            ConfigError: when no genome of the whole space decodes to the recipe.
        """
        return self._space.encode(recipe)[self._part]


@dataclass(frozen=True, slots=True)
class Stages:
    """Which parts are searched, and for how long."""

    parts: Mapping[str, slice]
    """The parts of a genome by name."""
    order: Sequence[str]
    """The parts in the order of the stages."""
    evaluations: int
    """Candidates a stage, at least 1."""
    repeat: bool
    """Whether the order begins anew after the last stage; else that one goes on for ever."""


class StagedSearch:
    """Runs a searcher of its own in each stage; the next stage starts from the best candidate of all before.

    A stage asks for so many candidates (fewer if its searcher finishes), and the next one begins when all of them
    were told: parameter space then data flow (Akiba et al. 2025, section 3.3), or the two in turns. Every
    candidate has a genome of the whole space. The best is the feasible one of highest scalarised objective, the
    earlier of equals; until there is one, the space's start.

    Args:
        space: the whole space.
        stages: which parts are searched, and for how long.
        make: the searcher of a stage, by its space and number from 0; it must be at its start.
        scalarize: how several objectives are seen as one number.
    """

    def __init__(
        self,
        space: Space,
        stages: Stages,
        make: Callable[[Space, int], Searcher],
        *,
        scalarize: Scalarize = "mean",
    ) -> None:
        self._space = space
        self._stages = stages
        self._make = make
        self._scalarize = scalarize
        self._ledger = Ledger(space)
        self._open: dict[int, Candidate] = {}
        self._best = (NOTHING_YET, -1)
        self._best_genome = space.start
        self._finished: str | None = None
        self._begin(0)

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates: none while a stage ends and its last ones are open."""
        candidates: list[Candidate] = []
        while len(candidates) < n and self._finished is None:
            if self._is_over() and not self._next():
                break
            asked = self._searcher.ask(1) if not self._is_over() else []
            if not asked:
                break
            candidates.append(self._issue(asked[0]))
        return candidates

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the scalarisation does not fit the objectives.
        """
        rank = (standing(outcome, self._scalarize), candidate.id)
        self._ledger.close(candidate)
        self._searcher.tell(self._open.pop(candidate.id), outcome)
        if outcome.state == "feasible" and rank < self._best:
            self._best, self._best_genome = rank, candidate.genome
        if self._is_last() and not self._open and self._searcher.finished is not None:
            self._finished = self._searcher.finished

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Let a candidate that was not asked here, whose id is negative, be where the next stage starts, if it is best.

        Raises:
            ConfigError: when the scalarisation does not fit the objectives.
        """
        rank = (standing(outcome, self._scalarize), candidate.id)
        if outcome.state == "feasible" and rank < self._best:
            self._best, self._best_genome = rank, candidate.genome

    @property
    def finished(self) -> str | None:
        """Why no further candidate will come, or None."""
        return self._finished

    def status(self) -> dict[str, float | int | str]:
        """Return the stage, its part and how many candidates it has had, and the status of its searcher."""
        return {
            "stage": self._stage,
            "part": self._part,
            "stage_asked": self._num_asked,
            **self._searcher.status(),
        }

    def _issue(self, inner: Candidate) -> Candidate:
        candidate = self._ledger.issue(
            self._view.whole(inner.genome),
            origin=f"{self._part} stage {self._stage}: {inner.origin}",
            generation=inner.generation,
            parents=tuple(self._first_id + parent for parent in inner.parents),
        )
        self._open[candidate.id] = inner
        self._num_asked += 1
        return candidate

    def _is_last(self) -> bool:
        return not self._stages.repeat and self._stage == len(self._stages.order) - 1

    def _is_over(self) -> bool:
        full = not self._is_last() and self._num_asked >= self._stages.evaluations
        return full or self._searcher.finished is not None

    def _next(self) -> bool:
        """Begin the next stage, if this one was told entirely and there is one."""
        if self._open:
            return False
        if self._is_last() or self._num_asked == 0:  # after a stage without a candidate, others would be so too
            self._finished = self._searcher.finished
            return False
        self._begin(self._stage + 1)
        return True

    def _begin(self, stage: int) -> None:
        self._stage = stage
        self._part = self._stages.order[stage % len(self._stages.order)]
        self._view = PartOfSpace(self._space, self._stages.parts[self._part], self._best_genome)
        self._searcher = self._make(self._view, stage)
        self._first_id = self._ledger.next_id
        self._num_asked = 0
