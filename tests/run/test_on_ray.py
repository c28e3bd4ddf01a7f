"""A whole search on a real local Ray cluster: killed workers and killed coordinators cost nothing but time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from evomerge.documents import dump_yaml
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated, Retried
from evomerge.run.folder import config_data
from evomerge.run.journal import read_journal
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.small import small_search, write_problem

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = {"executor": {"kind": "ray", "workers": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return small_search(folder, evaluations=12, engine={"threads": 1}, **RAY)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search in this process: what the searches on Ray must find too."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    start(small_search(folder, evaluations=12, engine={"threads": 1}), path)
    return path


def found(path: Path) -> tuple[dict[int, Any], dict[Any, Any]]:
    """Return every candidate and every score of a run; with two workers, results come in any order."""
    events = read_journal(path / "journal.jsonl")
    asked = {event.candidate: (event.recipe_id, event.genome) for event in events if isinstance(event, Asked)}
    scores = {
        (event.candidate, event.split): (event.state, event.objectives, event.stderr, event.scores)
        for event in events
        if isinstance(event, Evaluated)
    }
    return asked, scores


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the scoring processes that a coordinator started."""
    return [child for child in process.children(recursive=True) if child.name().startswith("ray::Worker")]


def test_a_worker_killed_while_scoring_costs_one_retry_and_nothing_else(
    config: RunConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.run.coordinator.LOOK_S", 0.0)
    killed: list[int] = []

    def kill_once(figures: Mapping[str, float | int | str]) -> None:
        if killed or not figures["open"]:
            return
        events = read_journal(tmp_path / "run" / "journal.jsonl")
        busy = [worker for worker in workers_of(psutil.Process()) if "score" in worker.name()]
        if busy and sum(isinstance(event, Evaluated) for event in events) > 5:
            killed.append(busy[0].pid)
            busy[0].send_signal(signal.SIGKILL)

    start(config, tmp_path / "run", observer=kill_once)
    retries = [event for event in read_journal(tmp_path / "run" / "journal.jsonl") if isinstance(event, Retried)]
    assert killed
    assert len(retries) <= 1  # none where the worker had just answered
    assert found(tmp_path / "run") == found(undisturbed)
    assert verify(tmp_path / "run").candidates == 12


def test_a_coordinator_killed_on_ray_leaves_no_process_and_its_run_resumes(
    config: RunConfig, undisturbed: Path, tmp_path: Path
) -> None:
    search, run = tmp_path / "search.yaml", tmp_path / "run"
    search.write_text(dump_yaml(config_data(config)))
    command = [sys.executable, "-m", "evomerge", "run", str(search), "--out", str(run), "--plain"]
    coordinator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not _scored(run) > 6:
            assert coordinator.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process(coordinator.pid).children(recursive=True)
        # Ray's two small agents notice up to a minute later than its servers and our workers that they are alone.
        children = [child for child in children if not child.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))]
    finally:
        os.kill(coordinator.pid, signal.SIGKILL)
        coordinator.wait()
    assert load_run(run).condition() == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    resume(run)
    assert found(run) == found(undisturbed)


def _scored(run: Path) -> int:
    journal = run / "journal.jsonl"
    return sum(isinstance(event, Evaluated) for event in read_journal(journal)) if journal.exists() else 0
