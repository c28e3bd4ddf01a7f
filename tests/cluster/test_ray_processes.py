"""Clusters of our own and of others, seen from outside: coordinators run as processes that can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.cluster import ExecutorConfig, RayExecutor
from evomerge.errors import ConfigError
from evomerge.testing.scorers import FunctionScorer, attempts

pytestmark = pytest.mark.ray

COORDINATOR = """
import json, signal, sys
from functools import partial
from pathlib import Path

from evomerge.cluster import Completed, ExecutorConfig, create_executor
from evomerge.testing.executors import jobs
from evomerge.testing.scorers import faulty

folder, behaviour, address = sys.argv[1:]
on_sigterm = lambda *_: None
signal.signal(signal.SIGTERM, on_sigterm)
config = ExecutorConfig(kind="ray", workers=2, address=address or None)
executor = create_executor(config, partial(faulty, Path(folder), {0: behaviour, 1: behaviour}, slow_s=3.0))
for job in jobs(range(4)):
    executor.submit(job)
events, interrupts = [], 0
while executor.open_jobs:
    try:
        events += executor.wait(0.5)
    except KeyboardInterrupt:
        interrupts += 1
result = {
    "interrupts": interrupts,
    "status": executor.status(),
    "attempts": {event.job.key: event.attempt for event in events if isinstance(event, Completed)},
    "sigterm_kept": signal.getsignal(signal.SIGTERM) is on_sigterm,
}
executor.close()
print(json.dumps(result))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until_gone(pids: list[int], longest_s: float = 30.0) -> None:
    end = time.monotonic() + longest_s
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "worker processes were left behind"
        time.sleep(0.1)


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return this process's environment without Ray's variables, with another home folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), **variables}


def coordinator(folder: Path, behaviour: str, *, address: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start a coordinator in a process group of its own, as a terminal does."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(folder), behaviour, address],
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def when_both_work(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """Wait until both workers are at a job, and return their process ids."""
    end = time.monotonic() + 60
    while not (attempts(folder, 0) and attempts(folder, 1)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return attempts(folder, 0) + attempts(folder, 1)


def test_ctrl_c_reaches_the_coordinator_alone_and_the_workers_finish(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group; the drain loses nothing, says nothing, leaves nothing behind."""
    process = coordinator(tmp_path, "slow")
    pids = when_both_work(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=90)

    assert process.returncode == 0, err
    result = json.loads(out)  # nothing else was printed
    assert err == ""
    assert result["interrupts"] == 1
    assert result["attempts"] == {f"{seed}/search": 1 for seed in range(4)}
    assert result["status"]["retried"] == 0
    assert result["sigterm_kept"]
    assert list((tmp_path / "home").iterdir()) == []
    until_gone(pids, 10.0)


def test_workers_end_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up; the cluster of our own ends all the same."""
    process = coordinator(tmp_path, "hang")
    pids = when_both_work(process, tmp_path)
    process.kill()
    process.communicate()
    until_gone(pids)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A Ray cluster of one CPU that somebody else started; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--include-dashboard=false", "--object-store-memory=100000000"],
        env=environment(tmp_path, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def test_a_running_cluster_is_joined_and_left_running(tmp_path: Path, head: str) -> None:
    """Two workers on its one CPU: one works, the other waits for room; afterwards others can join again."""
    folder = tmp_path / "first"
    folder.mkdir()
    process = coordinator(folder, "retryable_once", address=head, RAY_AUTH_MODE="disabled")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["attempts"] == {"0/search": 2, "1/search": 2, "2/search": 1, "3/search": 1}
    assert result["status"]["workers_ready"] == 1
    assert f"wait for room on the Ray cluster at {head}" in result["status"]["note"]

    with socket.socket() as probe:
        host, port = head.split(":")
        assert probe.connect_ex((host, int(port))) == 0


def test_an_address_where_nothing_listens_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'; start one with"):
        RayExecutor(ExecutorConfig(address="127.0.0.1:1"), FunctionScorer)


def test_an_address_where_something_else_listens_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.cluster._session.PROBE_TIMEOUT_S", 3.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            RayExecutor(ExecutorConfig(address=address), FunctionScorer)
