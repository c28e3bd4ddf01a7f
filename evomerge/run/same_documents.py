"""Whether all scores of a run are those of the same documents."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.errors import StateError
from evomerge.fitness.types import Evaluation, Split
from evomerge.run.problem import Problem
from evomerge.run.scores import ScoreStore
from evomerge.run.state import RunState


class SameDocuments:
    """Refuses documents that are not those of the scores before: a suite that was edited is another benchmark.

    Args:
        problem: what is searched.
        state: where the run stands.
        scores: the run's score files.
    """

    def __init__(self, problem: Problem, state: RunState, scores: ScoreStore) -> None:
        self._problem = problem
        self._state = state
        self._scores = scores
        self._documents: dict[Split, Mapping[str, tuple[str, ...]]] = {}

    def check(self, evaluation: Evaluation) -> None:
        """Compare an evaluation of a whole split.

        Raises:
            StateError: naming the split.
        """
        split = evaluation.split
        if not evaluation.documents:
            return
        if split not in self._documents:
            first = self._first_scores(split)
            self._documents[split] = evaluation.documents if first is None else self._scores.read(first).documents
        if self._documents[split] != evaluation.documents:
            raise StateError(
                f"{self._problem.suite.path}: the documents of the {split} split have changed since the run started; "
                "restore the suite and its data, or start a new run"
            )

    def _first_scores(self, split: Split) -> str | None:
        """Return the first scores of a split that are not those of a minibatch."""
        sampled = split == "search" and self._problem.config.search.minibatch is not None
        outcomes = self._state.of_split(split).items()
        whole = (event.scores for who, event in outcomes if event.scores and not (sampled and isinstance(who, int)))
        return next(whole, None)
