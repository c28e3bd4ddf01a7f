"""A search over PyTorch state dicts with a scorer of the user's own: in memory, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import StateError
from evomerge.fitness.sample_scores import SampleScores, Scores
from evomerge.recipe import Recipe
from evomerge.run.mixtures import Individual, Mixtures
from evomerge.run.progress import progress_bar
from evomerge.search import (
    Archive,
    Candidate,
    MapElites,
    NaturalNiches,
    Outcome,
    Scalarize,
    SearchConfig,
    Searcher,
    create_searcher,
    scalarize,
)
from evomerge.spaces import Space

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.state_dicts import StateDict

Score = Callable[[dict[str, "Tensor"]], Scores]
"""A user's scorer: from a model's state dict to its scores, of the same samples in the same order each time.

`run` overwrites the tensors for the next model: a scorer that keeps any clones it."""


class Evaluated(NamedTuple):
    """One evaluation."""

    evaluations: int
    """How many there were, this one included."""
    objectives: tuple[float, ...]


@dataclass(frozen=True)
class Scored:
    """A model that was scored."""

    candidate: Candidate
    objectives: Mapping[str, float]
    """Name -> value, all maximised."""
    samples: Mapping[str, NDArray[np.float64]] = field(repr=False)
    """Metric -> one score a sample."""
    _build: Callable[[], dict[str, Tensor]] = field(repr=False, compare=False)

    def state_dict(self) -> dict[str, Tensor]:
        """Return its weights, for `model.load_state_dict`."""
        return self._build()

    @property
    def recipe(self) -> Recipe:
        """How the sources make it."""
        return self.candidate.recipe


class StateDictSearch:
    """A search over mixtures of PyTorch state dicts; see `Search.over`.

    Everything is in memory and happens in the calling thread; equal arguments give an equal search.

    Args:
        sources: alias -> state dict.
        score: the scorer.
        config: searcher, options, seed, and how `best` sees several objectives.
        objectives: expressions over the scorer's metrics; None: the mean of each metric.
        chunks: equal parts of the weights that numeric searchers mix each with its own coefficients.

    Raises:
        SourceError: when the state dicts do not fit each other.
        ConfigError: for an unknown searcher or option, or an expression that is none.
    """

    def __init__(
        self,
        sources: Mapping[str, StateDict],
        score: Score,
        *,
        config: SearchConfig,
        objectives: Sequence[str] | None = None,
        chunks: int = 16,
    ) -> None:
        self._read = SampleScores(objectives)
        self._mixtures = Mixtures(sources, mutate=_mutates(config.options), chunks=chunks)
        self._searcher = create_searcher(config, self._mixtures.space, metrics=self._read.wanted)
        self._score = score
        self._scalarize: Scalarize = config.scalarize
        self._asked: Candidate | None = None
        self._history: list[Evaluated] = []
        self._best: Scored | None = None
        self._best_value = -math.inf
        self._ids: list[int] = []
        self._kept: dict[int, Scored] = {}

    @property
    def space(self) -> Space:
        """What may vary."""
        return self._mixtures.space

    @property
    def searcher(self) -> Searcher:
        """Who proposes."""
        return self._searcher

    def ask(self, n: int = 1) -> list[Candidate]:
        """Return up to `n` new candidates; `state_dict` gives their weights."""
        return self._searcher.ask(n)

    def state_dict(self, model: Candidate | Recipe) -> dict[str, Tensor]:
        """Return the weights of a candidate, or of a recipe over these sources.

        Raises:
            ConfigError: for a recipe that is none of this search.
        """
        genome = self.space.encode(model) if isinstance(model, Recipe) else model.genome
        return self._mixtures.state_dict(self._mixtures.individual(genome))

    def tell(self, candidate: Candidate, scores: Scores) -> Scored:
        """Let the searcher hear a candidate's scores, as the scorer returns them.

        Raises:
            ConfigError: for scores that are not per sample, not finite, or of other samples than before.
            ValueError: for a candidate that was never asked or was told already.
        """
        return self._hear(candidate, self._mixtures.individual(candidate.genome), scores)

    def _hear(self, candidate: Candidate, individual: Individual, scores: Scores) -> Scored:
        samples, objectives = self._read(scores)
        outcome = Outcome("feasible", tuple(objectives.values()), samples=samples)
        self._searcher.tell(candidate, outcome)
        scored = Scored(candidate, objectives, samples, lambda: self._mixtures.state_dict(individual))
        self._note(scored)
        return scored

    def run(
        self,
        evaluations: int,
        *,
        progress: bool = True,
        callback: Callable[[Scored], None] | None = None,
    ) -> None:
        """Go on for so many evaluations, or until the searcher is finished.

        Interrupted, it goes on where it was.

        Args:
            evaluations: on top of those so far.
            progress: whether a terminal or notebook shows a bar.
            callback: called after each evaluation.

        Raises:
            ConfigError: for scores that `tell` refuses.
            StateError: when the searcher waits for candidates that were asked by hand.
        """
        with progress_bar(evaluations, shown=progress) as advance:
            for _ in range(evaluations):
                candidate = self._next()
                if candidate is None:
                    return
                individual = self._mixtures.individual(candidate.genome)
                scored = self._hear(candidate, individual, self._score(self._mixtures.overwrite(individual)))
                self._asked = None
                if callback is not None:
                    callback(scored)
                advance(self._best_value)

    @property
    def best(self) -> Scored:
        """The model with the highest scalarised objective; the first of equals.

        Raises:
            StateError: before the first evaluation.
        """
        if self._best is None:
            raise StateError("nothing was scored yet, so there is no best; call run() first")
        return self._best

    @property
    def history(self) -> tuple[Evaluated, ...]:
        """Every evaluation: how many there were, and its objectives."""
        return tuple(self._history)

    @property
    def population(self) -> tuple[Scored, ...]:
        """The models that the searcher keeps and breeds, by slot; empty for searchers of numbers."""
        return tuple(self._kept[id_] for id_ in _members(self._searcher))

    @property
    def archive(self) -> Archive:
        """The Pareto front of all evaluations, and its history; candidates go by their ids.

        Raises:
            StateError: before the first evaluation.
            ConfigError: for more objectives than an archive takes.
        """
        archive = Archive(tuple(self.best.objectives), scalarize=self._scalarize)
        for id_, (_, objectives) in zip(self._ids, self._history, strict=True):
            archive.add(id_, objectives)
        return archive

    def _next(self) -> Candidate | None:
        """Return the candidate to score; None when the searcher is finished."""
        if self._asked is None:
            asked = self.ask()
            if not asked and self._searcher.finished is None:
                raise StateError("the searcher waits for candidates that were asked by hand; tell their scores first")
            self._asked = asked[0] if asked else None
        return self._asked

    def _note(self, scored: Scored) -> None:
        values = tuple(scored.objectives.values())
        self._ids.append(scored.candidate.id)
        self._history.append(Evaluated(len(self._history) + 1, values))
        value = scalarize(self._scalarize, values)
        if value > self._best_value:
            self._best, self._best_value = scored, value
        members = _members(self._searcher)
        if scored.candidate.id in members:
            self._kept[scored.candidate.id] = scored
            self._kept = {id_: self._kept[id_] for id_ in members}


def _mutates(options: Mapping[str, Any]) -> bool:
    """Tell whether a searcher, or one of a portfolio's, adds noise to children."""
    stages = options.get("stages")
    listed = stages if isinstance(stages, (list, tuple)) else ()
    inner = [stage.get("options") for stage in listed if isinstance(stage, Mapping)]
    return any(isinstance(each, Mapping) and bool(each.get("mutation")) for each in (options, *inner))


def _members(searcher: Searcher) -> tuple[int, ...]:
    """Return the ids of the candidates that a searcher breeds, by slot or cell; none for searchers of numbers."""
    if isinstance(searcher, NaturalNiches):
        return searcher.members
    return searcher.elites if isinstance(searcher, MapElites) else ()
