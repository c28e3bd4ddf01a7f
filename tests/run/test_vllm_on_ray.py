"""A whole search with real vLLM engines on Ray: a worker hangs, one is killed, the coordinator too, and resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from evomerge.catalog import catalog_root
from evomerge.documents import Document, dump_yaml
from evomerge.run.config import RunConfig
from evomerge.run.events import Evaluated, Retried
from evomerge.run.folder import config_data
from evomerge.run.journal import read_journal
from evomerge.run.load import resolve_config
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.test_on_ray import found

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
EVALUATIONS = 36


def search(folder: Path, **sections: Any) -> RunConfig:
    """Return a short search over three embedded models and 600 documents of each of two tasks."""
    suite = folder / "suite.yaml"
    suite.write_text(
        f"suite: 1\ninclude: {catalog_root() / 'fitness'}\n"
        "tasks: [{task: sums, limit: 600}, {task: letters, limit: 600}]\n"
        "splits: {search: 0.5, validation: 0.3, test: 0.2}\n"
    )
    data = {
        "name": "small",
        "sources": {alias: {"model": f"zoo:{alias}"} for alias in ("base", "math", "letters")},
        "base": "base",
        "space": {"method": "task_arithmetic", "groups": {"layers": 2}, "parameters": {"weight": [0.0, 1.0]}},
        "fitness": {"suite": str(suite), "objectives": ["sums.exact_match", "letters.exact_match"]},
        "search": {"searcher": "cma_es", "seed": 0, "options": {"population": 6}},
        "budget": {"evaluations": EVALUATIONS},
        "finalists": 2,
        **sections,
    }
    return resolve_config(Document(data=data, name="search.yaml", lines={}), folder)


def workers(coordinator: psutil.Process) -> list[psutil.Process]:
    """Return the processes that score."""
    return [child for child in coordinator.children(recursive=True) if child.name().startswith("ray::Worker")]


def scoring(coordinator: psutil.Process) -> list[psutil.Process]:
    """Return those of them that are at a job."""
    return [worker for worker in workers(coordinator) if worker.name().endswith("score")]


def test_a_search_whose_workers_hang_and_die_is_resumed_and_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The undisturbed search runs on transformers, so that the two engines are compared as well."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    undisturbed = tmp_path / "undisturbed"
    start(search(tmp_path, executor={"kind": "inline"}, engine={"threads": 1}), undisturbed)

    executor = {"kind": "ray", "workers": 2, "timeout_s": 25}
    config = search(tmp_path, executor=executor, engine={"kind": "vllm", "threads": 1})
    path, run = tmp_path / "search.yaml", tmp_path / "run"
    path.write_text(dump_yaml(config_data(config)))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default they starve beside other programs
    command = [sys.executable, "-m", "evomerge", "run", str(path), "--out", str(run), "--plain"]
    with (tmp_path / "log").open("w") as log:
        coordinator = subprocess.Popen(command, stdout=log, stderr=log)
    process = psutil.Process(coordinator.pid)
    try:
        hanging, dying = until(lambda: pair(scoring(process)), coordinator, tmp_path / "log")
        hanging.send_signal(signal.SIGSTOP)
        dying.send_signal(signal.SIGKILL)
        until(lambda: bool(retried(run, "no answer") and retried(run, "died")), coordinator, tmp_path / "log")
        hanging.wait(timeout=30)
        before = count(run)
        until(lambda: count(run) > before, coordinator, tmp_path / "log")
        children = [child for worker in workers(process) for child in (worker, *worker.children(recursive=True))]
    finally:
        coordinator.kill()
        coordinator.wait()
    assert load_run(run).condition() == "interrupted"
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    resume(run)
    assert found(run) == found(undisturbed)
    assert verify(run).candidates == EVALUATIONS


def pair(found: list[psutil.Process]) -> list[psutil.Process]:
    """Return two processes, or none yet."""
    return found if len(found) == 2 else []


def _unless_gone(condition: Callable[[], Any]) -> Any:
    """Return what a condition comes to, or None where a process ended while it was looked at."""
    try:
        return condition()
    except psutil.NoSuchProcess:
        return None


def until(condition: Callable[[], Any], coordinator: subprocess.Popen[bytes], log: Path) -> Any:
    """Wait until there is what is waited for, and return it."""
    deadline = time.monotonic() + 300.0
    while not (result := _unless_gone(condition)):
        assert coordinator.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return result


def retried(run: Path, reason: str) -> list[Retried]:
    """Return the candidates that were given to another worker for a reason."""
    events = read_journal(run / "journal.jsonl")
    return [event for event in events if isinstance(event, Retried) and reason in event.reason]


def count(run: Path) -> int:
    journal = run / "journal.jsonl"
    return sum(isinstance(event, Evaluated) for event in read_journal(journal)) if journal.exists() else 0
