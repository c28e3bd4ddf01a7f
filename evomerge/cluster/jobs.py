"""Searches as Ray Jobs: submitted once, found again, followed to their end.

A job's submission id is derived from the run folder and an attempt number. Ray lets one job have an id, so that two
submissions of a run at once become one job; and it never gives an id out again, so that a job that continues a run
whose job has ended takes the next number.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from evomerge.cluster._joining import check_versions, has_token, token_error
from evomerge.cluster.faults import one_line
from evomerge.errors import ConfigError, EvaluationError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray start --head` and a forwarded port have the job server."""
SEARCH_FILE = "search.yaml"
"""The search file's name in the job's working folder."""
ANSWER_TIMEOUT_S = 10.0
"""How long a job server may take to answer at all."""
STOP_WAIT_S = 600
"""How long `ray job stop` waits for what is being scored to be finished and journaled."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_METADATA = "evomerge_search"
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_NO_SUCH_COMMAND = 127


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted search, as the job server has it."""

    id: str
    attempt: int
    """From 1; each continues the run where the one before it ended."""
    status: str
    """PENDING, RUNNING, or one of `ENDED`."""
    search: str
    """The fingerprint of the search file that it was submitted with."""
    exit_code: int | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether it neither runs nor will."""
        return self.status in ENDED

    def why_failed(self) -> str:
        """Return one sentence about a failed job."""
        if self.exit_code == _NO_SUCH_COMMAND:
            return "the cluster's head has no command `evomerge`: install the same evomerge on every machine"
        return f"it failed: {one_line(self.message)}"


def run_key(run: Path) -> str:
    """Return what the submission ids of a run begin with: `evomerge-NAME-DIGEST`, by the folder's absolute path."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run.name)[:40]
    return f"evomerge-{name}-{hashlib.sha256(str(run).encode()).hexdigest()[:10]}"


def entrypoint(run: Path, mirror: str | None = None) -> str:
    """Return the command of a job: starts the run, or continues it where it is there already."""
    # `exec`: no shell in between, so that `ray job stop` reaches the coordinator and waits for it.
    command = f"exec evomerge run {SEARCH_FILE} --out {shlex.quote(str(run))}"
    copy = "" if mirror is None else f" --mirror {shlex.quote(mirror)}"
    return f"{command} --resume --plain --set executor.address=auto{copy}"


class JobServer:
    """The job server of a running cluster.

    Args:
        address: `http://host:port`, or https.

    Raises:
        ConfigError: when the address is none, nothing or something else answers there, the cluster runs another
            version of Ray, or asks for a token that is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        self._named = f"--address: the Ray cluster at {self.address}"
        _probe(self.address)
        _prepare_environment()
        with self._sentences(), _without_address_variables():
            from ray.job_submission import JobSubmissionClient

            _quiet()
            self._client: Any = JobSubmissionClient(self.address)
        told = self._client._server_ray_version  # noqa: SLF001 - not told otherwise
        check_versions(self._named, {} if told is None else {"ray_version": told})

    def latest(self, key: str) -> Job | None:
        """Return the last job of a run (`run_key`), or None before the first."""
        with self._sentences():
            found = [job for details in self._client.list_jobs() if (job := _as_job(details, key)) is not None]
        return max(found, key=lambda job: job.attempt, default=None)

    def submit(self, run: Path, search: str, attempt: int, *, fingerprint: str, mirror: str | None = None) -> Job:
        """Submit a search as attempt `attempt` of a run; where somebody else just did, that job is returned.

        Args:
            run: the run folder, an absolute path on the cluster.
            search: the resolved search file's text; it travels with the job.
            attempt: from 1.
            fingerprint: kept with the job, to tell whether a later submission is of the same search.
            mirror: where the run is copied to, and fetched from.
        """
        submission_id = f"{run_key(run)}-{attempt}"
        with TemporaryDirectory() as folder, self._sentences():
            (Path(folder) / SEARCH_FILE).write_text(search, encoding="utf-8")
            try:
                self._client.submit_job(
                    entrypoint=entrypoint(run, mirror),
                    submission_id=submission_id,
                    runtime_env={"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}},
                    metadata={_METADATA: fingerprint},
                )
            except RuntimeError:
                job = self.latest(run_key(run))
                if job is None or job.attempt < attempt:
                    raise
                return job
        return self.job(submission_id)

    def job(self, submission_id: str) -> Job:
        """Return one job as it stands."""
        with self._sentences():
            details = self._client.get_job_info(submission_id)
        job = _as_job(details, submission_id.rpartition("-")[0])
        if job is None:
            raise EvaluationError(f"the job server at {self.address} answers with another job than {submission_id}")
        return job

    def follow(self, submission_id: str, write: Callable[[str], None]) -> Job:
        """Write a job's log as it grows, until the job has ended; return it.

        Args:
            submission_id: the job.
            write: is given the log in pieces, each character once.
        """
        seen = 0
        while True:
            seen = asyncio.run(self._tail(submission_id, write, seen))
            # The log ends a moment before the job is marked as ended; or the connection broke, and is made again.
            for _ in range(10):
                job = self.job(submission_id)
                if job.ended:
                    return job
                time.sleep(0.5)

    async def _tail(self, submission_id: str, write: Callable[[str], None], seen: int) -> int:
        """Write what comes after the first `seen` characters until the log or the connection ends."""
        import aiohttp

        read = 0
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            pieces: AsyncIterator[str] = self._client.tail_job_logs(submission_id)
            async for piece in pieces:
                fresh = piece[max(0, seen - read) :]
                read += len(piece)
                if fresh:
                    write(fresh)
        return max(seen, read)

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Say what the job server refuses in one sentence."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise token_error(self._named, "the one here is missing or not its own") from error
        except OSError as error:
            raise EvaluationError(
                f"the job server at {self.address} stopped answering ({one_line(str(error))}); what is journaled is "
                "kept, and submitting again finds the job or continues the run"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise EvaluationError(f"the job server at {self.address} refused: {one_line(str(error))}") from error


def fingerprint_of(data: Mapping[str, Any]) -> str:
    """Return a short digest of a search file's data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _as_job(details: Any, key: str) -> Job | None:
    """Return what Ray tells about a job as a `Job`, or None where it is not one of the run's."""
    submission_id = details.submission_id or ""
    head, _, number = submission_id.rpartition("-")
    if head != key or not number.isdecimal():
        return None
    return Job(
        id=submission_id,
        attempt=int(number),
        status=str(getattr(details.status, "value", details.status)),
        search=(details.metadata or {}).get(_METADATA, ""),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _checked(address: str) -> str:
    """Return an address without its last slash; refuse what is none of a job server."""
    plain = address.rstrip("/")
    with contextlib.suppress(ValueError):
        parts = urlsplit(plain)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query:
            return plain
    raise ConfigError(f"--address: expected the job server's address, such as {DEFAULT_ADDRESS}, got {address!r}")


def _probe(address: str) -> None:
    """Refuse an address where no job server answers; Ray's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - http(s)
            found = json.load(answer)
            if isinstance(found, dict) and "ray_version" in found:
                return
            reason = "what answers is not Ray"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):  # a job server that wants a token: its client says so
            return
        reason = f"what answers is not Ray: {error.code}"
    except (OSError, ValueError) as error:
        reason = one_line(str(getattr(error, "reason", error)))
    raise ConfigError(
        f"--address: no Ray job server answers at {address} ({reason}); start the cluster with `ray start --head` "
        "where `pip install 'evomerge[cluster]'` was done, or forward its port 8265 to this machine"
    )


def _prepare_environment() -> None:
    """Set what Ray reads when it is imported; values that the user has set stay."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's client does not send the token that is there unless it is told to.
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _quiet() -> None:
    """Let Ray's client log what is wrong, and not each request that it makes."""
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _without_address_variables() -> Iterator[None]:
    """Let the address given be the one used: Ray's client would prefer what these variables hold."""
    before = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
