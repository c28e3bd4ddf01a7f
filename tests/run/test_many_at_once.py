"""Several results at one time: they share an fsync, nothing is given out before it, and no kill loses more than it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster.types import Completed, Event, Job
from evomerge.run import journal as journal_module
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.small import AnalyticScorer, small_search, write_problem

WORKERS = 4


class AllAtOnce:
    """Workers that all answer at one time, in an order that is not that of asking."""

    def __init__(self, problem: Problem, check: Callable[[Job], None] = lambda job: None) -> None:
        self.capacity = WORKERS
        self._scorer = AnalyticScorer(problem)
        self._check = check
        self._jobs: list[Job] = []
        self.batches: list[int] = []

    @property
    def open_jobs(self) -> int:
        return len(self._jobs)

    def resize(self, workers: int) -> None:
        self.capacity = workers

    def submit(self, job: Job) -> None:
        self._check(job)
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> list[Event]:
        jobs, self._jobs = self._jobs[::-1], []
        self.batches.append(len(jobs))
        return [Completed(job, self._scorer.score(job.recipe, job.split), 1, "w", 0.01) for job in jobs]

    def status(self) -> dict[str, float | int | str]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small_search(write_problem(tmp_path_factory.mktemp("problem")), evaluations=16)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    start(config, path, executor=AllAtOnce)
    return path


def found(path: Path) -> tuple[dict[int, Any], dict[Any, Any]]:
    """Return every candidate and every score of a run, whatever the order."""
    events = read_journal(path / "journal.jsonl")
    asked = {event.candidate: (event.recipe_id, event.genome) for event in events if isinstance(event, Asked)}
    scores = {
        (event.candidate, event.split): (event.state, event.objectives, event.scores)
        for event in events
        if isinstance(event, Evaluated)
    }
    return asked, scores


def test_a_job_is_given_out_only_once_its_candidate_and_all_before_it_are_on_disk(
    config: RunConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    told: list[int] = []

    def check(job: Job) -> None:
        who, split = job.key.split("/")
        events = read_journal(path / "journal.jsonl")
        if who.isdigit() and split == "search":
            assert int(who) in {event.candidate for event in events if isinstance(event, Asked)}
        scored = [event for event in events if isinstance(event, Evaluated) and event.scores]
        assert all((path / str(event.scores)).exists() for event in scored)
        told.append(len(scored))

    start(config, path, executor=lambda problem: AllAtOnce(problem, check))
    assert told == sorted(told)
    assert verify(path).open == 0


def test_results_of_one_time_share_one_fsync_of_the_journal(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    real = journal_module._write_all

    def counted(file: Any, data: bytes) -> None:
        writes.append(data.count(b'"event":"evaluated"'))
        real(file, data)

    monkeypatch.setattr(journal_module, "_write_all", counted)
    executors: list[AllAtOnce] = []

    def executor(problem: Problem) -> AllAtOnce:
        executors.append(AllAtOnce(problem))
        return executors[-1]

    start(config, tmp_path / "run", executor=executor)
    assert [count for count in writes if count] == [count for count in executors[0].batches if count]
    assert max(writes) == WORKERS


def killed_in_write(path: Path, config: RunConfig, after: int, share: float) -> int:
    """Run a session in a forked process that dies within its n-th write of the journal, a share of it written."""

    def session() -> None:
        real, left = journal_module._write_all, after

        def dying(file: Any, data: bytes) -> None:
            nonlocal left
            if left == 0:
                real(file, data[: int(share * len(data))])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            real(file, data)

        journal_module._write_all = dying
        if (path / "config.yaml").exists():
            resume(path, executor=AllAtOnce)
        else:
            start(config, path, executor=AllAtOnce)

    process = multiprocessing.get_context("fork").Process(target=session)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_killed_within_every_write_the_run_ends_as_the_undisturbed_one(
    config: RunConfig, undisturbed: Path, tmp_path: Path, share: float
) -> None:
    path, sessions = tmp_path / "run", 0
    while killed_in_write(path, config, 2 + sessions % 4, share) == -signal.SIGKILL:
        sessions += 1
        assert sessions < 60
    assert sessions >= 3
    assert found(path) == found(undisturbed)
    assert verify(path).open == 0
    assert load_run(path).condition() == "finished"
