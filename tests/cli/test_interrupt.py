"""Ctrl-C and SIGTERM: the run drains, says how to continue, and continues as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import run_command
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run.config import RunConfig
from evomerge.run.events import Evaluated, Paused
from evomerge.run.journal import read_journal
from evomerge.run.session import resume, start
from tests.cli.conftest import Cli, SteadyScorer, opened_analytic, steady_executor
from tests.run.test_resume import story

PATIENCE_S = 60.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {PATIENCE_S:g} seconds"
        time.sleep(0.02)


def num_scored(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b'"event":"evaluated"') if journal.exists() else 0


def test_ctrl_c_drains_a_real_run_and_the_resumed_one_equals_the_undisturbed(
    cli: Cli, problem: Path, config: RunConfig, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "evomerge", "run", str(problem / "search.yaml"), "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for(lambda: num_scored(out) >= 6 or process.poll() is not None, "the sixth score")
        process.send_signal(signal.SIGINT)
        said, complaints = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, complaints
    assert said == ""
    assert "Traceback" not in complaints
    assert f"Continue with: evomerge resume {out}" in complaints
    events = read_journal(out / "journal.jsonl")
    assert isinstance(events[-1], Paused)
    assert events[-1].reason == "interrupted"
    assert cli("status", out, "--json").json["state"] == "paused"
    start(config, undisturbed)
    resume(out)
    assert story(out) == story(undisturbed)


class _SlowScorer(SteadyScorer):
    """Takes so long over one of its evaluations."""

    calls = 0

    def score(self, recipe: Recipe, split: Split) -> Evaluation:
        _SlowScorer.calls += 1
        time.sleep(60 if _SlowScorer.calls == 8 else 0.05)
        return super().score(recipe, split)


def forked_run(problem: Path, out: Path, *, slow: bool, name: str = "search.yaml") -> Any:
    """Run the search in a forked process whose standard error goes to a file beside the run."""

    def session() -> None:
        words = os.open(out.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY)
        os.dup2(words, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        from evomerge.run import session

        def opened(config: RunConfig, **more: Any) -> Any:
            found = opened_analytic(config, **more)
            scorer = _SlowScorer(found)
            if not slow:
                _SlowScorer.calls = 1000
            object.__setattr__(found, "scorer", lambda: scorer)
            return found

        session.open_problem = opened
        code = run_command(["run", str(problem / name), "--out", str(out), "--plain"])
        sys.stderr.flush()
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=session)
    process.start()
    return process


@pytest.fixture
def undisturbed(finished: Path) -> list[Any]:
    return story(finished)


def test_sigterm_drains_too(problem: Path, tmp_path: Path, undisturbed: list[Any]) -> None:
    out = tmp_path / "run"
    process = forked_run(problem, out, slow=False)
    try:
        wait_for(lambda: num_scored(out) >= 6, "the sixth score")
        os.kill(process.pid, signal.SIGTERM)
        process.join(PATIENCE_S)
    finally:
        process.kill()
    words = out.with_suffix(".txt").read_text()
    assert process.exitcode == 130, words
    assert "terminated: finishing what is being scored" in words
    assert f"Continue with: evomerge resume {out}" in words
    events = read_journal(out / "journal.jsonl")
    assert isinstance(events[-1], Paused)
    assert len([event for event in events if isinstance(event, Evaluated)]) < len(undisturbed)
    resume(out, executor=steady_executor)
    assert story(out) == undisturbed


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_journaled(
    problem: Path, tmp_path: Path, undisturbed: list[Any]
) -> None:
    out = tmp_path / "run"
    process = forked_run(problem, out, slow=True)
    words = out.with_suffix(".txt")
    try:
        wait_for(lambda: num_scored(out) >= 7, "the seventh score")
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: "finishing what is being scored" in words.read_text(), "the answer to Ctrl-C")
        assert process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        process.join(20)
    finally:
        process.kill()
    assert process.exitcode == 130
    text = words.read_text()
    assert "Traceback" not in text
    assert f"stopped at once; everything journaled is kept. Continue with: evomerge resume {out}" in text
    kept = read_journal(out / "journal.jsonl")
    assert sum(isinstance(event, Evaluated) for event in kept) == 7
    resume(out, executor=steady_executor)
    assert read_journal(out / "journal.jsonl")[: len(kept)] == kept
    assert story(out) == undisturbed
