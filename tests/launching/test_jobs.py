"""The jobs of a run: which of them is the run's, and what a failed one says; over a job server in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.job_submission

from evomerge.cluster import jobs
from evomerge.cluster.jobs import Job, JobServer, run_key
from evomerge.errors import EvaluationError

RUN = Path("/runs/a")
KEY = run_key(RUN)


class Client:
    """A job server's client that keeps its jobs in a list, and refuses an id that is taken, as Ray does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._server_ray_version = ray.__version__
        self.submitted: list[dict[str, Any]] = []
        self.details: dict[str, SimpleNamespace] = {}
        self.log = [["one\n", "two\n"], ["one\ntwo\n", "three\n"]]

    def add(self, submission_id: str, status: str = "RUNNING", **more: Any) -> None:
        facts = {"metadata": {}, "driver_exit_code": None, "message": "", **more}
        self.details[submission_id] = SimpleNamespace(submission_id=submission_id, status=status, **facts)

    def submit_job(self, **options: Any) -> str:
        if options["submission_id"] in self.details:
            raise RuntimeError("Request failed with status code 500: already exists")
        folder = Path(options["runtime_env"]["working_dir"])
        self.submitted.append({**options, "files": {path.name: path.read_text() for path in folder.iterdir()}})
        self.add(options["submission_id"], "PENDING", metadata=options["metadata"])
        return str(options["submission_id"])

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.details.values())

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return self.details[submission_id]

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        """Break off the first time; from the beginning the second time."""
        for piece in self.log.pop(0):
            yield piece
        if self.log:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        self.details[submission_id].status = "SUCCEEDED"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> JobServer:
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    monkeypatch.setattr(jobs, "_probe", lambda address: None)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    return JobServer("http://127.0.0.1:8265/")


def client(server: JobServer) -> Client:
    found = server._client
    assert isinstance(found, Client)
    return found


def test_the_last_attempt_of_the_run_is_its_job(server: JobServer) -> None:
    assert server.latest(KEY) is None
    for name in (f"{KEY}-9", f"{KEY}-10", f"{run_key(Path('/other/a'))}-11", f"{KEY}-x", "raysubmit_1"):
        client(server).add(name)
    client(server).details["driver"] = SimpleNamespace(submission_id=None)
    last = server.latest(KEY)
    assert last is not None
    assert (last.id, last.attempt) == (f"{KEY}-10", 10)


def test_the_search_file_travels_with_the_job(server: JobServer) -> None:
    job = server.submit(RUN, "name: a\n", 1, fingerprint="f")
    (options,) = client(server).submitted
    assert options["files"] == {"search.yaml": "name: a\n"}
    assert options["entrypoint"] == jobs.entrypoint(RUN)
    assert (job.id, job.status, job.search) == (f"{KEY}-1", "PENDING", "f")


def test_a_mirror_travels_with_the_command(server: JobServer) -> None:
    server.submit(RUN, "name: a\n", 1, fingerprint="f", mirror="s3://bucket/my runs/a")
    (options,) = client(server).submitted
    assert options["entrypoint"] == f"{jobs.entrypoint(RUN)} --mirror 's3://bucket/my runs/a'"


def test_of_two_submissions_at_once_one_becomes_the_job(server: JobServer) -> None:
    client(server).add(f"{KEY}-1", "RUNNING", metadata={"evomerge_search": "theirs"})
    job = server.submit(RUN, "name: a\n", 1, fingerprint="mine")
    assert (job.id, job.search) == (f"{KEY}-1", "theirs")
    assert client(server).submitted == []


def test_a_refusal_is_one_sentence(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> str:
        raise RuntimeError("Request failed with status code 500: no agent\nTraceback ...")

    monkeypatch.setattr(client(server), "submit_job", refuse)
    with pytest.raises(EvaluationError, match=r"127\.0\.0\.1:8265 refused: .*no agent$"):
        server.submit(RUN, "name: a\n", 1, fingerprint="f")


def test_a_log_is_written_once_though_the_connection_broke(server: JobServer) -> None:
    client(server).add(f"{KEY}-1")
    pieces: list[str] = []
    job = server.follow(f"{KEY}-1", pieces.append)
    assert "".join(pieces) == "one\ntwo\nthree\n"
    assert job.status == "SUCCEEDED"


def test_why_a_job_failed() -> None:
    assert "no command `evomerge`" in Job("a-1", 1, "FAILED", "", exit_code=127).why_failed()
    assert Job("a-1", 1, "FAILED", "", message="out of memory\nmore").why_failed() == "it failed: out of memory"
