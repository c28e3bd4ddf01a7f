"""The contract that every executor keeps, as a pytest suite.

Subclass it beside your executor and give it a factory:

    class TestMyExecutor(ExecutorContract):
        def make(self, config: ExecutorConfig, factory: ScorerFactory) -> Executor:
            return MyExecutor(config, factory)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.types import Completed, Event, Executor, Failed, Job, Retried, ScorerFactory
from evomerge.errors import SourceError, StateError
from evomerge.fitness.types import Evaluation, Minibatch, Split
from evomerge.recipe import Recipe
from evomerge.testing.scorers import Behaviour, FunctionScorer, closeness, example_recipe, faulty

LONGEST_S = 120.0
"""After so long without an end, a suite gives up."""


def jobs(seeds: Iterable[int], split: Split = "search") -> list[Job]:
    """Return one job a seed; the recipes differ in seed and weight."""
    return [Job(f"{seed}/{split}", example_recipe(seed / 100, seed=seed), split) for seed in seeds]


def drain(executor: Executor, longest_s: float = LONGEST_S) -> list[Event]:
    """Wait until no job is open, and return everything that happened.

    Raises:
        TimeoutError: when jobs are open after `longest_s` seconds.
    """
    events: list[Event] = []
    end = time.monotonic() + longest_s
    while executor.open_jobs:
        if time.monotonic() > end:
            raise TimeoutError(f"{executor.open_jobs} jobs are still open: {executor.status()}")
        events += executor.wait(1.0)
    return events


def finals(events: Iterable[Event]) -> dict[str, Completed | Failed]:
    """Return the event that closed each job, by the job's key.

    Raises:
        AssertionError: when a job was closed twice.
    """
    closing = [event for event in events if not isinstance(event, Retried)]
    counts = Counter(event.job.key for event in closing)
    if counts and max(counts.values()) > 1:
        raise AssertionError(f"closed more than once: {counts.most_common(3)}")
    return {event.job.key: event for event in closing}


def peculiar(recipe: Recipe, split: Split) -> dict[str, np.ndarray[Any, Any]]:
    """Return scores that only exact transport keeps: not a number, infinities, signed zeros, none, and many."""
    rng = np.random.Generator(np.random.Philox(recipe.seed + len(split)))
    return {
        "odd.score": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 0.1 + 0.2]),
        "none.score": np.zeros(0),
        "many.score": rng.standard_normal(50_000),  # larger than what Ray sends inline
    }


class _Infeasible:
    """A scorer whose every recipe gives no working model."""

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:  # noqa: ARG002
        return Evaluation(split, facts={"seed": float(recipe.seed)}, infeasible="logits are not finite")

    def close(self) -> None:
        pass


def _broken_factory() -> NoReturn:
    raise SourceError("sources.math: no such folder; give the path of a checkpoint")


def _refusal(executor: Executor, workers: int) -> str:
    """Return why an executor refuses a number of workers; empty where it accepts it."""
    try:
        executor.resize(workers)
    except StateError as error:
        return str(error)
    return ""


class ExecutorContract(ABC):
    """What the coordinator relies on, whatever the executor."""

    @abstractmethod
    def make(self, config: ExecutorConfig, factory: ScorerFactory) -> Executor:
        """Return a fresh executor. `config.kind` has no meaning here."""

    @contextmanager
    def executor(self, factory: ScorerFactory, **settings: Any) -> Iterator[Executor]:
        """Return an executor that is closed afterwards."""
        executor = self.make(ExecutorConfig.model_validate(settings), factory)
        try:
            yield executor
        finally:
            executor.close()

    def test_every_job_is_completed_once_with_the_scores_of_its_own_recipe(self) -> None:
        """More jobs than capacity wait; each ends in exactly one event, in whatever order."""
        with self.executor(partial(FunctionScorer, closeness), workers=2) as executor:
            assert executor.capacity >= 1
            assert executor.open_jobs == 0
            batch = [*jobs(range(6)), *jobs(range(3), "validation")]
            for job in batch:
                executor.submit(job)
            assert executor.open_jobs == 9
            closed = finals(drain(executor))

            assert set(closed) == {job.key for job in batch}
            for job in batch:
                event = closed[job.key]
                assert isinstance(event, Completed), event
                assert event.job == job
                assert event.attempt == 1
                assert event.seconds >= 0
                assert event.worker
                wanted = FunctionScorer(closeness).score(job.recipe, job.split)
                assert event.evaluation.split == job.split
                assert event.evaluation.documents == wanted.documents
                for name, values in wanted.samples.items():
                    np.testing.assert_array_equal(event.evaluation.samples[name], values, strict=True)

    def test_evaluations_arrive_bit_for_bit_and_are_ours_to_change(self) -> None:
        """Not-a-numbers, signed zeros and large arrays come through; nobody else holds the memory."""
        with self.executor(partial(FunctionScorer, peculiar)) as executor:
            (job,) = jobs([3])
            executor.submit(job)
            event = finals(drain(executor))[job.key]
            assert isinstance(event, Completed), event
            for name, values in peculiar(job.recipe, job.split).items():
                arrived = event.evaluation.samples[name]
                assert arrived.dtype == np.float64
                assert arrived.tobytes() == values.tobytes()
                assert arrived.flags.writeable

    def test_an_infeasible_recipe_is_a_result(self) -> None:
        """It completes, with its reason and its facts."""
        with self.executor(_Infeasible) as executor:
            executor.submit(jobs([7])[0])
            event = finals(drain(executor))["7/search"]
            assert isinstance(event, Completed), event
            assert event.evaluation.infeasible == "logits are not finite"
            assert event.evaluation.facts == {"seed": 7.0}

    def test_what_a_scorer_raises_is_the_affair_of_its_job_alone(self, tmp_path: Path) -> None:
        """Retryable errors are retried up to the limit, others close their job at once; all else is scored."""
        plan: dict[int, Behaviour] = {1: "raise", 2: "retryable_once", 3: "retryable"}
        with self.executor(partial(faulty, tmp_path, plan), attempts=3) as executor:
            for job in jobs(range(5)):
                executor.submit(job)
            events = drain(executor)
            closed = finals(events)

            assert {key for key, event in closed.items() if isinstance(event, Failed)} == {
                "1/search",
                "3/search",
            }
            raised, unlucky, mended = closed["1/search"], closed["3/search"], closed["2/search"]
            assert isinstance(raised, Failed)
            assert (raised.kind, raised.attempt) == ("error", 1)
            assert "ValueError: the recipe of seed 1 cannot be scored" in raised.reason
            assert "\n" not in raised.reason
            assert isinstance(unlucky, Failed)
            assert (unlucky.kind, unlucky.attempt) == ("error", 3)
            assert "out of luck" in unlucky.reason
            assert isinstance(mended, Completed)
            assert mended.attempt == 2
            retried = [(event.job.key, event.attempt) for event in events if isinstance(event, Retried)]
            assert sorted(retried) == [("2/search", 1), ("3/search", 1), ("3/search", 2)]

    def test_a_scorer_that_reports_its_worker_lost_is_replaced(self, tmp_path: Path) -> None:
        """A `WorkerLostError` costs one retry, on a fresh scorer."""
        with self.executor(partial(faulty, tmp_path, {0: "lost_once"})) as executor:
            executor.submit(jobs([0])[0])
            lost, completed = drain(executor)
            assert isinstance(lost, Retried)
            assert "the engine died" in lost.reason
            assert isinstance(completed, Completed)
            assert completed.attempt == 2

    def test_a_scorer_that_cannot_be_built_is_the_error_of_wait(self) -> None:
        """The error keeps its class and text, so the command line can say what to correct."""
        with self.executor(_broken_factory, workers=2) as executor:
            executor.submit(jobs([0])[0])
            with pytest.raises(SourceError, match="no such folder"):
                drain(executor)

    def test_the_number_of_workers_follows_at_once_or_is_refused_in_one_sentence(self) -> None:
        """Growing and shrinking while jobs are open costs no attempt; the figures count what workers did."""
        with self.executor(partial(FunctionScorer, closeness), workers=1) as executor:
            for job in jobs(range(3)):
                executor.submit(job)
            executor.resize(1)
            refusal = _refusal(executor, 2)
            assert "\n" not in refusal
            assert executor.capacity == (1 if refusal else 2)
            events = executor.wait(30.0)
            executor.resize(1)
            assert executor.capacity == 1
            for job in jobs(range(3, 6)):
                executor.submit(job)
            closed = finals(events + drain(executor))
            assert len(closed) == 6
            assert all(isinstance(event, Completed) and event.attempt == 1 for event in closed.values())
            assert "worker" in _refusal(executor, 0)
            figures = executor.status()
            assert figures["workers"] == 1
            assert 0 < float(figures["busy_share"]) <= 1
            assert figures["gpu_seconds"] == 0

    def test_misuse_is_refused_and_closing_is_final(self) -> None:
        """Waiting for nothing returns; a key is open once; closing drops open jobs and may be repeated."""
        with self.executor(partial(FunctionScorer, closeness)) as executor:
            assert executor.wait(30.0) == []
            first, second = jobs(range(2))
            executor.submit(first)
            with pytest.raises(StateError, match="'0/search' is open already"):
                executor.submit(first)
            executor.submit(second)
            for name, figure in executor.status().items():
                assert isinstance(name, str)
                assert isinstance(figure, (int, float, str))
            executor.close()
            executor.close()
            assert executor.open_jobs == 0
            assert executor.wait(30.0) == []
            with pytest.raises(StateError, match="closed"):
                executor.submit(first)
