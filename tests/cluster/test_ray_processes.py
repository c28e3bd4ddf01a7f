"""Clusters of our own and of others, seen from outside: coordinators run as processes that can be killed."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray

from evomerge.cluster import ExecutorConfig, RayExecutor, _probe
from evomerge.errors import ConfigError
from evomerge.testing.scorers import FunctionScorer, attempts

pytestmark = pytest.mark.ray

COORDINATOR = """
import json, signal, sys
from functools import partial
from pathlib import Path

from evomerge.cluster import Completed, ExecutorConfig, _nodes, create_executor
from evomerge.errors import EvomergeError
from evomerge.testing.executors import jobs
from evomerge.testing.scorers import faulty

folder, behaviour, address = sys.argv[1:]
_nodes.SILENT_S = 5.0
on_sigterm = lambda *_: None
signal.signal(signal.SIGTERM, on_sigterm)
config = ExecutorConfig(kind="ray", workers=2, address=address or None)
try:
    executor = create_executor(config, partial(faulty, Path(folder), {0: behaviour, 1: behaviour}, slow_s=3.0))
except EvomergeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
for job in jobs(range(4)):
    executor.submit(job)
events, interrupts = [], 0
while executor.open_jobs:
    try:
        events += executor.wait(0.5)
    except KeyboardInterrupt:
        interrupts += 1
    except EvomergeError as error:
        executor.close()
        sys.exit(f"{type(error).__name__}: {error}")
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


def until(condition: Callable[[], object], longest_s: float = 60.0) -> None:
    end = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


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


@contextmanager
def cluster(home: Path, **variables: str) -> Iterator[tuple[str, int]]:
    """A Ray cluster of one CPU that somebody else started; yields its address and its process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--include-dashboard=false", "--object-store-memory=100000000"],
        env=environment(home, RAY_USAGE_STATS_ENABLED="0", **variables),
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
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    with cluster(tmp_path, RAY_AUTH_MODE="disabled") as (address, _):
        yield address


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


@pytest.mark.parametrize("end", ["killed", pytest.param("stopped", marks=pytest.mark.soak)])
def test_a_head_that_is_gone_ends_the_coordinator_with_one_sentence(tmp_path: Path, end: str) -> None:
    """Its processes are killed, or answer nothing any more: Ray itself would print its log and end the process."""
    folder = tmp_path / "run"
    folder.mkdir()
    with cluster(tmp_path, RAY_AUTH_MODE="disabled") as (address, group):
        process = coordinator(folder, "hang", address=address, RAY_AUTH_MODE="disabled")
        until(lambda: attempts(folder, 0))
        heads = [int(pid) for pid in subprocess.check_output(["pgrep", "-g", str(group), "gcs_server"]).split()]
        if end == "killed":
            os.killpg(group, signal.SIGKILL)
        else:
            os.kill(heads[0], signal.SIGSTOP)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            with suppress(ProcessLookupError):
                os.kill(heads[0], signal.SIGCONT)
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(
        rf"EvaluationError: the Ray cluster at {address} is gone \(its head has not answered for 5 s\); everything "
        r"journaled is kept: start the cluster again, and `evomerge resume RUN` continues the run\n",
        err,
    ), err


@pytest.mark.soak
def test_a_cluster_that_asks_for_a_token_is_joined_with_it_and_refused_in_one_sentence_without(tmp_path: Path) -> None:
    """The token alone is enough; a wrong one, none, or one that is promised and not there is said."""
    ours, wrong = "ab" * 24, "cd" * 24
    with cluster(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=ours) as (address, _):
        for name, variables in {
            "wrong": {"RAY_AUTH_TOKEN": wrong},
            "none": {},
            "promised": {"RAY_AUTH_MODE": "token"},
            "ours": {"RAY_AUTH_TOKEN": ours},
        }.items():
            folder = tmp_path / name
            folder.mkdir()
            process = coordinator(folder, "retryable_once", address=address, **variables)
            out, err = process.communicate(timeout=120)
            if name == "ours":
                assert json.loads(out)["attempts"]["3/search"] == 1
            else:
                assert "asks for a token, and " in err
                assert "set RAY_AUTH_TOKEN to what `ray get-auth-token` prints" in err
                assert (process.returncode, out, err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"ray_version": "2.49.0", "python_version": platform.python_version()}, "runs Ray 2.49.0 and this machine"),
        ({"ray_version": ray.__version__, "python_version": "3.9.1"}, "runs Python 3.9.1 and this machine"),
        (None, "no Ray cluster answers"),
    ],
    ids=["Ray", "Python", "something else"],
)
def test_a_cluster_of_other_versions_is_refused_in_one_sentence(
    answer: dict[str, str] | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_probe, "_ask", lambda _: answer)
    with pytest.raises(ConfigError, match=text):
        _probe.check_cluster("auto")


def test_the_same_versions_but_for_the_last_number_of_python_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, _ = platform.python_version_tuple()
    there = {"ray_version": ray.__version__, "python_version": f"{major}.{minor}.99"}
    monkeypatch.setattr(_probe, "_ask", lambda _: there)
    _probe.check_cluster("auto")


def test_an_address_where_nothing_listens_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'; start one with"):
        RayExecutor(ExecutorConfig(address="127.0.0.1:1"), FunctionScorer)


def test_an_address_where_something_else_listens_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.cluster._probe.PROBE_TIMEOUT_S", 3.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            RayExecutor(ExecutorConfig(address=address), FunctionScorer)
