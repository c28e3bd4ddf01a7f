"""Searches on a real Ray head with its job server: submitted, found again, stopped, continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evomerge.run.view import load_run
from tests.launching.files import CLUSTER
from tests.run.small import write_problem

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEARCH = """
name: small
sources: {base: {model: base}, letters: {model: letters}, digits: {model: digits}}
base: base
space: {method: task_arithmetic, groups: {layers: whole}}
fitness: {suite: suite.yaml, objectives: [letters.exact_match, digits.exact_match]}
search: {searcher: random, seed: 0}
engine: {kind: transformers, dtype: float32}
executor: {kind: ray, workers: 1}
budget: {evaluations: 100000}
references: {parents: false, uniform: false}
finalists: 0
"""
STUBS = {
    # One machine, and no Slurm: `srun` runs the command here, `scontrol` says which machine and notes the rest.
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": 'if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> "$SCONTROL_LOG"; fi\n',
    # Ray's own `symmetric-run` ends every Ray of the machine, other people's too: the head of this module stands in.
    "ray": 'while [[ $1 != -- ]]; do shift; done\nshift\nRAY_AUTH_TOKEN=$HEAD_TOKEN "$@"\n',
}


@dataclass(frozen=True)
class Head:
    """A running head: its addresses, and an environment whose commands know its token."""

    address: str
    jobs: str
    environment: dict[str, str]

    def run(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words], env={**self.environment, **more}, capture_output=True, text=True, check=False
        )

    def submit(self, *words: object) -> Any:
        """Submit a search and return what the command says as JSON."""
        done = self.run("evomerge", "submit", *words, "--address", self.jobs, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head with a job server that asks for a token."""
    gcs, dashboard = free_ports(2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "RAY_AUTH_TOKEN": "a-token-for-this-head-alone-0123456789",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: it holds sockets
    options = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-cpus=2"]
    options += ["--dashboard-agent-listen-port=0", "--object-store-memory=100000000", "--include-dashboard=true"]
    process = subprocess.Popen(
        ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", *options],
        env={**environment, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        jobs = f"http://127.0.0.1:{dashboard}"
        until(lambda: answers(jobs), process)
        yield Head(f"127.0.0.1:{gcs}", jobs, environment)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """Tell whether a job server listens; without the token it refuses, which is an answer."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()  # noqa: S310 - http
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def until(met: Any, process: subprocess.Popen[Any] | None = None, longest_s: float = 120) -> None:
    end = time.monotonic() + longest_s
    while not met():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)


def evaluations(run: Path) -> int:
    """Return how many candidates a run has scored; 0 before it has begun."""
    if not (run / "config.yaml").exists():
        return 0
    done: int = load_run(run).status()["evaluations"]["done"]
    return done


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A search over tiny models that would go on for hours."""
    path = write_problem(tmp_path) / "search.yaml"
    path.write_text(SEARCH)
    return path


def test_a_run_has_one_job_at_a_time_and_goes_on_where_it_was_stopped(head: Head, search: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    first = head.submit(search, "--out", run)
    assert (first["was"], first["attempt"], first["run"]) == ("submitted", 1, str(run))
    again = head.submit(search, "--out", run)
    assert (again["was"], again["job"]) == ("running", first["job"])

    other = head.run("evomerge", "submit", search, "--out", run, "--address", head.jobs, "--set", "search.seed=1")
    assert other.returncode == 2
    assert "works on this run with another search file" in other.stderr
    until(lambda: evaluations(run) > 0)
    stop = other.stderr.split("`")[1].split()
    assert stop[:3] == ["ray", "job", "stop"]
    assert head.run(*stop, RAY_AUTH_MODE="token").returncode == 0
    assert load_run(run).status()["state"] == "paused"

    budget = ("--set", f"budget.evaluations={evaluations(run) + 1}")
    followed = head.run("evomerge", "submit", search, "--out", run, "--address", head.jobs, *budget, "--follow")
    assert followed.returncode == 0, followed.stderr
    assert followed.stderr.startswith(f"continued: {first['job'][:-1]}2\n")
    assert "best: candidate" in followed.stdout
    assert load_run(run).status()["state"] == "finished"
    last = head.submit(search, "--out", run, *budget)
    assert (last["was"], last["attempt"], last["status"]) == ("finished", 2, "SUCCEEDED")


def test_a_search_that_fails_on_the_cluster_exits_with_its_code(head: Head, search: Path, tmp_path: Path) -> None:
    search.write_text(SEARCH.replace("digits}}", "/no/such/model}}"))
    failed = head.run(
        "evomerge", "submit", search, "--out", tmp_path / "run", "--address", head.jobs, "--follow", "--json"
    )
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["status"] == "FAILED"
    assert "/no/such/model" in failed.stderr


@pytest.fixture
def slurm(head: Head, tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script on one machine."""
    for name, text in STUBS.items():
        stub = tmp_path / "stubs" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/usr/bin/env bash\n{text}")
        stub.chmod(0o755)
    return {
        **head.environment,
        "PATH": f"{tmp_path / 'stubs'}{os.pathsep}{head.environment['PATH']}",
        "HEAD_TOKEN": head.environment["RAY_AUTH_TOKEN"],
        "RAY_ADDRESS": head.address,
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_JOB_ID": "7",
    }


def test_slurms_signal_drains_the_run_and_queues_the_job_again(
    slurm: dict[str, str], search: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", Path(slurm["SCONTROL_LOG"])
    script = ["bash", str(CLUSTER / "slurm.sh"), str(search), str(run)]
    process = subprocess.Popen(script, env=slurm, stderr=subprocess.PIPE, text=True)
    until(lambda: evaluations(run) > 0, process)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert log.read_text() == "requeue 7\n"
    assert load_run(run).status()["state"] == "paused"

    done = evaluations(run)
    search.write_text(SEARCH.replace("evaluations: 100000", f"evaluations: {done + 1}"))
    again = subprocess.run(script, env=slurm, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert log.read_text() == "requeue 7\n"
    assert load_run(run).status()["state"] == "finished"
    assert evaluations(run) == done + 1
