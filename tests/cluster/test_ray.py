"""Real workers on a real local cluster, and what they survive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from evomerge.cluster import Executor, ExecutorConfig, RayExecutor, ScorerFactory, _slot
from evomerge.cluster._session import Session
from evomerge.cluster.types import Completed, Failed, Retried
from evomerge.errors import EvaluationError
from evomerge.testing.executors import ExecutorContract, drain, finals, jobs
from evomerge.testing.scorers import Behaviour, FunctionScorer, attempts, faulty

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One local cluster for the module: executors join what the process is connected to and leave it running."""
    session = Session(ExecutorConfig(workers=2))
    yield
    session.close()


@contextmanager
def workers(factory: ScorerFactory, **settings: object) -> Iterator[RayExecutor]:
    executor = RayExecutor(ExecutorConfig.model_validate(settings), factory)
    try:
        yield executor
    finally:
        executor.close()


def until(condition: Callable[[], bool], longest_s: float = 30.0) -> None:
    end = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)


class TestRayExecutor(ExecutorContract):
    def make(self, config: ExecutorConfig, factory: ScorerFactory) -> Executor:
        return RayExecutor(config, factory)


def test_a_worker_killed_mid_evaluation_costs_one_retry_and_nothing_else(tmp_path: Path) -> None:
    """SIGKILL of the process that scores: its job is scored by another one, the other jobs never notice."""
    with workers(partial(faulty, tmp_path, {0: "slow"}, slow_s=3.0), workers=2) as executor:
        for job in jobs(range(8)):
            executor.submit(job)
        events = []
        while not attempts(tmp_path, 0):
            events += executor.wait(0.1)
        os.kill(attempts(tmp_path, 0)[0], signal.SIGKILL)
        events += drain(executor)

        retried = [event for event in events if isinstance(event, Retried)]
        assert [(event.job.key, event.attempt) for event in retried] == [("0/search", 1)]
        assert "died" in retried[0].reason
        closed = finals(events)
        assert len(closed) == 8
        assert all(isinstance(event, Completed) for event in closed.values())
        assert [closed[f"{seed}/search"].attempt for seed in range(8)] == [2, *[1] * 7]
        assert executor.status()["retried"] == 1


def test_a_mixture_of_twenty_jobs_ends_with_each_getting_its_due(tmp_path: Path) -> None:
    """Crashes, hangs, errors, unsendable results and poison among good jobs: nothing hangs, nothing is lost."""
    plan: dict[int, Behaviour] = {
        1: "exit_once", 4: "hang_once", 7: "raise", 9: "exit", 12: "kill_once", 15: "retryable_once", 18: "unsendable",
    }  # fmt: skip
    with workers(partial(faulty, tmp_path, plan), workers=2, timeout_s=2.5) as executor:
        for job in jobs(range(20)):
            executor.submit(job)
        closed = finals(drain(executor))
        assert executor.status()["retried"] == 5

    failed = {key: event for key, event in closed.items() if isinstance(event, Failed)}
    assert {key: event.kind for key, event in failed.items()} == {
        "7/search": "error",
        "9/search": "quarantined",
        "18/search": "error",
    }
    assert "did not arrive" in failed["18/search"].reason
    assert "2 workers" in failed["9/search"].reason
    assert len(attempts(tmp_path, 9)) == 2
    assert len(closed) == 20
    again = {key for key, event in closed.items() if isinstance(event, Completed) and event.attempt == 2}
    assert again == {f"{seed}/search" for seed in (1, 4, 12, 15)}
    assert len(attempts(tmp_path, 0)) == 1


def test_a_hung_worker_is_ended_and_says_so(tmp_path: Path) -> None:
    with workers(partial(faulty, tmp_path, {0: "hang"}), timeout_s=0.5, attempts=1) as executor:
        executor.submit(jobs([0])[0])
        event = finals(drain(executor))["0/search"]
        assert isinstance(event, Failed)
        assert event.kind == "error"
        assert "gave no answer within 0.5 s" in event.reason
        (pid,) = attempts(tmp_path, 0)
        until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize(
    ("factory", "settings", "text"),
    [
        (partial(os._exit, 1), {}, "no worker starts on the local Ray cluster; worker-0, the last time: died"),
        (partial(int, "no number"), {}, "invalid literal"),
        (partial(time.sleep, 3600), {"start_timeout_s": 0.5}, "not ready within 0.5 s"),
        (FunctionScorer, {"cpus_per_worker": 64, "start_timeout_s": 0.5}, "gave no worker its 64 CPUs"),
    ],
    ids=["dies", "raises", "hangs", "no room"],
)
def test_workers_that_never_start_are_an_error_and_not_an_endless_loop(
    factory: ScorerFactory, settings: dict[str, float], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "cpus_per_worker" in settings:
        monkeypatch.setattr(_slot, "PROCESS_START_S", 0.0)
    with workers(factory, **settings) as executor:
        executor.submit(jobs([0])[0])
        with pytest.raises(EvaluationError, match=text):
            drain(executor)


def test_workers_without_room_wait_while_the_others_work(tmp_path: Path) -> None:
    """Three workers on two CPUs: everything is scored, and the status says why one worker is idle."""
    with workers(partial(faulty, tmp_path), workers=3) as executor:
        for job in jobs(range(12)):
            executor.submit(job)
        closed = finals(drain(executor))
        assert all(isinstance(event, Completed) for event in closed.values())
        assert executor.capacity == 3
        assert "wait for room on the local Ray cluster" in str(executor.status().get("note", ""))


def test_ctrl_c_during_wait_loses_no_result(tmp_path: Path) -> None:
    """The interrupt passes through `wait`; the workers go on, and waiting again drains them."""
    with workers(partial(faulty, tmp_path, {0: "slow"}, slow_s=2.0)) as executor:
        executor.submit(jobs([0])[0])
        while not attempts(tmp_path, 0):
            executor.wait(0.1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                drain(executor)
        finally:
            signal.signal(signal.SIGALRM, before)
        (event,) = drain(executor)
        assert isinstance(event, Completed)
        assert event.attempt == 1


def test_closing_ends_busy_workers_at_once(tmp_path: Path) -> None:
    with workers(partial(faulty, tmp_path, {0: "hang", 1: "hang"}), workers=2) as executor:
        for job in jobs(range(2)):
            executor.submit(job)
        while not (attempts(tmp_path, 0) and attempts(tmp_path, 1)):
            executor.wait(0.1)
    pids = attempts(tmp_path, 0) + attempts(tmp_path, 1)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
