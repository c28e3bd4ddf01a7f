"""Several searchers over one budget, one after the other or in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from evomerge.documents import StrictModel
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.search.genomes import numeric_genome
from evomerge.search.ledger import Ledger
from evomerge.search.progress import Progress
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome, Searcher
from evomerge.spaces.types import Dimension, Genome, Space

_FOREIGN = 1 << 40
"""Stages know their siblings' candidates by ids from -1 down, and what no sibling asked by ids from here down."""


class Until(StrictModel):
    """When a stage is over: as soon as one of these holds, or its searcher has finished."""

    evaluations: int | None = Field(default=None, ge=1)
    """So many of its candidates were told."""
    stagnation: int | None = Field(default=None, ge=1)
    """So many of its candidates were told without progress in between. Progress is a feasible outcome of any stage to
    which no earlier one is at least equal in every objective: a new best, or with several objectives a larger
    hypervolume."""


class StageOptions(StrictModel):
    """One searcher of a portfolio."""

    searcher: str
    options: dict[str, Any] = Field(default_factory=dict)
    until: Until = Field(default_factory=Until)
    share: float = Field(default=1.0, gt=0)
    """Where searchers take turns: candidates in proportion to the shares of the others."""


class PortfolioOptions(StrictModel):
    """Options of a portfolio."""

    stages: tuple[StageOptions, ...] = Field(min_length=1)
    together: bool = False
    """Whether the searchers take turns, each till its stage is over; else they follow each other."""


@runtime_checkable
class Listener(Protocol):
    """A searcher that can use what others found."""

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take note of an outcome of another searcher's candidate.

        The candidate's id is negative, never one of the listener's own, and may be named as a parent. Its genome may
        be a bred one, if the space breeds.
        """
        ...


class StartAt:
    """A space whose start is another genome; all else is the space's own."""

    def __init__(self, space: Space, start: Genome) -> None:
        self._space = space
        self.start = start

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space's dimensions."""
        return self._space.dimensions

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome."""
        return self._space.decode(genome)

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of the space."""
        return self._space.encode(recipe)

    def __getattr__(self, name: str) -> object:
        return getattr(self._space, name)


@dataclass(slots=True, eq=False)
class _Stage:
    number: int
    options: StageOptions
    ids: list[int] = field(default_factory=list)
    """Its candidates' ids in the portfolio, by their ids in the searcher."""
    num_told: int = 0
    num_stagnant: int = 0
    over: str | None = None
    """Why, once it is."""

    def judge(self, searcher: Searcher) -> None:
        """Find out whether it is over."""
        until = self.options.until
        if searcher.finished is not None:
            self.over = searcher.finished
        elif until.evaluations is not None and self.num_told >= until.evaluations:
            self.over = f"{until.evaluations} evaluations of {self.options.searcher}"
        elif until.stagnation is not None and self.num_stagnant >= until.stagnation:
            self.over = f"{until.stagnation} evaluations of {self.options.searcher} without progress"


class Portfolio:
    """Several searchers that share one budget and hear each other.

    A searcher that listens (natural niches, NSGA-II, TPE) hears every outcome of the others from the first on, so that
    its stage begins with all of them; any other begins at the best candidate so far. Candidates that are open when
    their stage ends are told to the searcher that asked them, and heard by the others.

    In turns, the next candidate comes from the searcher with the fewest for its share, the earlier of equals; one that
    must be told open ones first is passed over.

    Args:
        space: where to search.
        options: the stages.
        make: the searcher of a stage, at its start, by space and number of the stage from 0.
        scalarize: how several objectives are seen as one number, to tell the best candidate.

    Raises:
        ConfigError: when a stage's searcher or one of its options does not exist.
    """

    def __init__(
        self,
        space: Space,
        options: PortfolioOptions,
        make: Callable[[Space, int], Searcher],
        *,
        scalarize: Scalarize = "mean",
    ) -> None:
        self._space = space
        self._make = make
        self._together = options.together
        self._ledger = Ledger(space)
        self._progress = Progress(scalarize)
        self._open: dict[int, tuple[_Stage, Candidate]] = {}
        self._stages = [_Stage(number, stage) for number, stage in enumerate(options.stages)]
        self._searchers: dict[int, Searcher] = {}
        for stage in self._stages:  # all of them, so that a mistake in the last stage is heard of at once
            searcher = self._first(stage)
            if isinstance(searcher, Listener):
                self._searchers[stage.number] = searcher

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates: fewer while a searcher must be told open ones first."""
        candidates: list[Candidate] = []
        while len(candidates) < n and (candidate := self._next()):
            candidates.append(candidate)
        return candidates

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the scalarisation does not fit the objectives.
        """
        self._ledger.close(candidate)
        stage, inner = self._open.pop(candidate.id)
        self._searchers[stage.number].tell(inner, outcome)
        self._spread(replace(candidate, id=-1 - candidate.id, parents=()), outcome, teller=stage.number)
        stage.num_told += 1
        stage.num_stagnant += 1
        self._note(candidate, outcome)
        for number, searcher in self._searchers.items():
            if self._stages[number].over is None:
                self._stages[number].judge(searcher)

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Let all stages hear of a candidate that none of them asked, whose id is negative.

        Raises:
            ConfigError: when the scalarisation does not fit the objectives.
        """
        self._spread(replace(candidate, id=candidate.id - _FOREIGN, parents=()), outcome)
        self._note(candidate, outcome)

    @property
    def finished(self) -> str | None:
        """Why no further candidate will come, or None."""
        return None if self._running() else self._stages[-1].over

    def status(self) -> dict[str, float | int | str]:
        """Return who is searching and how many candidates each was told of, and, one after the other, its status."""
        running = self._running()
        names = [stage.options.searcher for stage in running]
        told = {f"told_{stage.number}_{stage.options.searcher}": stage.num_told for stage in self._stages}
        inner: dict[str, float | int | str] = {}
        if len(running) == 1 and running[0].number in self._searchers:
            inner = self._searchers[running[0].number].status()
        return {"searching": ", ".join(names), **told, **inner}

    def _spread(self, heard: Candidate, outcome: Outcome, teller: int | None = None) -> None:
        """Let those that listen hear an outcome, but the one that was told of it."""
        for number, searcher in self._searchers.items():
            if number != teller and self._stages[number].over is None and isinstance(searcher, Listener):
                searcher.hear(heard, outcome)

    def _note(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take note of the best, and of progress."""
        if self._progress.add(candidate, outcome):
            for each in self._stages:
                each.num_stagnant = 0

    def _running(self) -> list[_Stage]:
        """Return the stages whose turn it may be."""
        running = [stage for stage in self._stages if stage.over is None]
        return running if self._together else running[:1]

    def _next(self) -> Candidate | None:
        for stage in sorted(self._running(), key=lambda stage: len(stage.ids) / stage.options.share):
            if not stage.ids:
                self._begin(stage)
            for inner in self._searchers[stage.number].ask(1):
                return self._issue(stage, inner)
        return None

    def _issue(self, stage: _Stage, inner: Candidate) -> Candidate:
        candidate = self._ledger.issue(
            inner.genome,
            origin=f"stage {stage.number}: {inner.origin}",
            generation=inner.generation,
            parents=tuple(stage.ids[parent] if parent >= 0 else _known(parent) for parent in inner.parents),
        )
        stage.ids.append(candidate.id)
        self._open[candidate.id] = stage, inner
        return candidate

    def _begin(self, stage: _Stage) -> None:
        if stage.number not in self._searchers:
            best = self._progress.best
            start = self._space.start if best is None else numeric_genome(self._space, best.genome)
            self._searchers[stage.number] = self._make(StartAt(self._space, start), stage.number)

    def _first(self, stage: _Stage) -> Searcher:
        """Make a stage's searcher as if it were its turn.

        Raises:
            ConfigError: when it does not exist, or one of its options; the key path is the stage's.
        """
        path = f"search.options.stages[{stage.number}]"
        if stage.options.searcher == "portfolio":
            raise ConfigError(f"{path}.searcher: a portfolio holds no portfolio; list its stages here")
        try:
            return self._make(self._space, stage.number)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(
                f"{path}.{text.removeprefix('search.')}" if text.startswith("search.") else text
            ) from None


def _known(parent: int) -> int:
    """Return the portfolio's id of a candidate that a stage has only heard of."""
    return parent + _FOREIGN if parent < -_FOREIGN else -1 - parent
