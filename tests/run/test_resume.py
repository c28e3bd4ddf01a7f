"""Resume equivalence: whatever instant the coordinator is killed at, the run ends as if it had never been."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster import InlineExecutor
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated, Event
from evomerge.run.journal import JournalWriter, read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.small import analytic_executor, small_search, write_problem

Story = list[tuple[Any, ...]]


def story(path: Path) -> Story:
    """Return what a run found, in order: every candidate and every score, without times, workers and sessions."""
    lines: Story = []
    for event in read_journal(path / "journal.jsonl"):
        if isinstance(event, Asked):
            lines.append(("asked", event.candidate, event.recipe_id, event.genome, event.parents, event.origin))
        elif isinstance(event, Evaluated):
            what = (event.candidate, event.recipe_id, event.split, event.state)
            lines.append(("evaluated", *what, event.objectives, event.stderr, event.scores, event.reused_from))
    return lines


def dying_append(after: int, *, torn: bool) -> Callable[[JournalWriter, Event], Event]:
    """Return an `append` that kills the process with SIGKILL once it has written `after` events of this session."""
    original = JournalWriter.append
    written = 0

    def append(self: JournalWriter, event: Event) -> Event:
        nonlocal written
        if written >= after:
            if torn:
                os.write(self._file.fileno(), b'{"seq":99,"event":"asked","ti')
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        return original(self, event)

    return append


def killed_session(path: Path, config: RunConfig, after: int, *, torn: bool) -> int:
    """Run a session in a forked process that dies after `after` events; return its exit code."""

    def session() -> None:
        JournalWriter.append = dying_append(after, torn=torn)  # type: ignore[method-assign]
        if (path / "config.yaml").exists():
            resume(path, executor=analytic_executor)
        else:
            start(config, path, executor=analytic_executor)

    process = multiprocessing.get_context("fork").Process(target=session)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def problem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def config(problem_folder: Path) -> RunConfig:
    return small_search(problem_folder, evaluations=10)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    start(config, path, executor=analytic_executor)
    return path


@pytest.mark.parametrize("torn", [False, True], ids=["between lines", "within a line"])
def test_killed_after_every_event_the_run_ends_as_the_undisturbed_one(
    config: RunConfig, undisturbed: Path, tmp_path: Path, *, torn: bool
) -> None:
    events = len(read_journal(undisturbed / "journal.jsonl"))
    for after in range(events):
        path = tmp_path / f"killed-{after}"
        assert killed_session(path, config, after, torn=torn) == -signal.SIGKILL
        if not (path / "journal.jsonl").exists():
            continue
        resume(path, executor=analytic_executor)
        assert story(path) == story(undisturbed), f"killed after {after} events"
        assert verify(path).open == 0


def test_killed_again_and_again_a_run_still_ends_as_the_undisturbed_one(
    config: RunConfig, undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    sessions = 0
    while killed_session(path, config, 4, torn=sessions % 2 == 1) == -signal.SIGKILL:
        sessions += 1
        assert sessions < 100
    assert sessions > 5
    assert story(path) == story(undisturbed)
    assert load_run(path).condition() == "finished"


def test_nothing_that_was_journaled_is_scored_again(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert killed_session(path, config, 14, torn=False) == -signal.SIGKILL
    before = {(e.candidate, e.split) for e in read_journal(path / "journal.jsonl") if isinstance(e, Evaluated)}
    scored: list[str] = []

    def recording(problem: Problem) -> InlineExecutor:
        executor = analytic_executor(problem)
        submit = executor.submit
        executor.submit = lambda job: (scored.append(job.key), submit(job))[1]  # type: ignore[method-assign]
        return executor

    resume(path, executor=recording)
    assert before
    assert not {f"{who}/{split}" for who, split in before} & set(scored)


def test_a_run_with_a_larger_budget_goes_on_from_where_it_stood(
    config: RunConfig, problem_folder: Path, tmp_path: Path
) -> None:
    path, longer = tmp_path / "run", tmp_path / "longer"
    start(config, path, executor=analytic_executor)
    resume(path, ["budget.evaluations=20"], executor=analytic_executor)
    start(small_search(problem_folder, evaluations=20), longer, executor=analytic_executor)
    searched = [line for line in story(path) if line[0] == "asked"]
    assert searched == [line for line in story(longer) if line[0] == "asked"]
    assert load_run(path).status()["evaluations"]["done"] == 20
    assert load_run(path).budget.evaluations == 20


def test_resuming_a_finished_run_changes_no_result(undisturbed: Path, config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    start(config, path, executor=analytic_executor)
    resume(path, executor=analytic_executor)
    assert story(path) == story(undisturbed)


def test_the_same_file_and_seed_give_the_same_run(undisturbed: Path, config: RunConfig, tmp_path: Path) -> None:
    start(config, tmp_path / "run", executor=analytic_executor)
    assert story(tmp_path / "run") == story(undisturbed)


def test_another_seed_gives_another_run(undisturbed: Path, problem_folder: Path, tmp_path: Path) -> None:
    start(small_search(problem_folder, evaluations=10, seed=1), tmp_path / "run", executor=analytic_executor)
    assert story(tmp_path / "run") != story(undisturbed)
