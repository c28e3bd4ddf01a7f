"""The executor with no cluster."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from evomerge.cluster import Executor, ExecutorConfig, InlineExecutor, ScorerFactory, create_executor
from evomerge.cluster.config import ExecutorConfig as Config
from evomerge.cluster.interrupts import interrupts_held
from evomerge.cluster.types import Completed
from evomerge.errors import EvaluationError
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.testing.executors import ExecutorContract, drain, jobs
from evomerge.testing.scorers import FunctionScorer, attempts, faulty


class TestInlineExecutor(ExecutorContract):
    def make(self, config: ExecutorConfig, factory: ScorerFactory) -> Executor:
        return InlineExecutor(config, factory)


class Interrupted:
    """A scorer that is interrupted by Ctrl-C on its first job."""

    interrupts = 0

    def score(self, recipe: Recipe, split: Split) -> Evaluation:
        if not Interrupted.interrupts:
            Interrupted.interrupts += 1
            raise KeyboardInterrupt
        return FunctionScorer().score(recipe, split)

    def close(self) -> None:
        pass


def test_the_search_file_chooses_the_executor() -> None:
    executor = create_executor(Config(kind="inline"), FunctionScorer)
    assert isinstance(executor, InlineExecutor)
    executor.close()


def test_the_scorer_is_built_at_the_first_job_and_only_once(tmp_path: Path) -> None:
    built = []

    def factory() -> FunctionScorer:
        built.append(1)
        return FunctionScorer()

    executor = InlineExecutor(Config(), factory)
    assert built == []
    for job in jobs(range(3)):
        executor.submit(job)
    drain(executor)
    assert built == [1]


def test_wait_scores_one_job_at_a_time_in_order() -> None:
    executor = InlineExecutor(Config(), FunctionScorer)
    for job in jobs(range(3)):
        executor.submit(job)
    assert [[event.job.key for event in executor.wait(0)] for _ in range(3)] == [
        ["0/search"],
        ["1/search"],
        ["2/search"],
    ]


def test_ctrl_c_passes_through_and_the_job_is_scored_again_without_cost() -> None:
    executor = InlineExecutor(Config(attempts=1), Interrupted)
    executor.submit(jobs([0])[0])
    with pytest.raises(KeyboardInterrupt):
        executor.wait(1.0)
    assert executor.open_jobs == 1
    (event,) = drain(executor)
    assert isinstance(event, Completed)
    assert event.attempt == 1


def test_a_factory_that_fails_by_accident_is_one_error_of_ours() -> None:
    def factory() -> FunctionScorer:
        raise OSError("no GPU driver")

    executor = InlineExecutor(Config(), factory)
    executor.submit(jobs([0])[0])
    with pytest.raises(EvaluationError, match="could not be built: OSError: no GPU driver"):
        executor.wait(1.0)
    assert executor.open_jobs == 1


def test_a_scorer_that_loses_its_engine_again_and_again_is_quarantined(tmp_path: Path) -> None:
    executor = InlineExecutor(Config(quarantine_after=1), partial(faulty, tmp_path, {0: "lost_once"}))
    executor.submit(jobs([0])[0])
    (event,) = drain(executor)
    assert getattr(event, "kind", None) == "quarantined"
    assert len(attempts(tmp_path, 0)) == 1


def test_ctrl_c_is_held_back_during_bookkeeping_and_delivered_after_it() -> None:
    done = []

    def bookkeeping() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        bookkeeping()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("address", ["auto", "head.example:6379", "10.0.0.1:6379", None])
def test_addresses_of_clusters_are_accepted(address: str | None) -> None:
    assert Config(address=address).address == address


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "local", "--help:1", "", "a b:1"])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="expected `auto` or `host:port`"):
        Config(address=address)
