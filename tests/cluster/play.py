"""One search with a fault in it, and the same search where nothing happens."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from evomerge.cluster import InlineExecutor, ScorerFactory
from evomerge.run.config import RunConfig
from evomerge.run.events import Evaluated, Event
from evomerge.run.journal import read_journal
from evomerge.run.problem import open_problem
from evomerge.run.session import start
from evomerge.run.state import fold
from tests.cluster.scripted import Act, Attempt, Identities, Script, ScriptedScorer
from tests.cluster.stage import Coordinator, Mirrored, Nodes
from tests.run.s3_server import BUCKET, S3Server
from tests.run.small import small_search, write_problem

EVALUATIONS = 12
VICTIM = 5
"""The candidate that suffers: one of the second generation."""


class Search:
    """The search of all plays, and what it finds when nothing happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = small_search(write_problem(folder), evaluations=EVALUATIONS, engine={"kind": "transformers"})
        self._runs: dict[bool, Path] = {}

    @cached_property
    def identities(self) -> Identities:
        return Identities(open_problem(self.config).infos)

    @cached_property
    def victim(self) -> str:
        """Identity of the recipe that suffers."""
        return fold(self.undisturbed(fails=False)).asked[VICTIM].recipe_id

    def undisturbed(self, *, fails: bool) -> list[Event]:
        """Return the journal of a run in this process where nothing happens, but for a victim that `fails`."""
        if fails not in self._runs:
            acts: dict[str, Act] = {self.victim: "raise"} if fails else {}
            notes = self._folder / f"notes-{fails}"
            notes.mkdir()
            factory = partial(ScriptedScorer, self.identities, Script(notes, acts))
            self._runs[fails] = self._folder / f"undisturbed-{fails}"
            start(
                self.config,
                self._runs[fails],
                executor=lambda problem: InlineExecutor(problem.config.executor, factory),
            )
        return read_journal(self._runs[fails] / "journal.jsonl")


@dataclass
class Play:
    """One run on a cluster."""

    nodes: Nodes
    config: RunConfig
    run: Path
    script: Script
    factory: ScorerFactory
    victim: str
    cleanup: ExitStack
    mirrored: Mirrored | None = None
    coordinators: list[Coordinator] = field(default_factory=list)

    def coordinate(self) -> Coordinator:
        """Start the run, or the same command once more."""
        executor = self.config.executor.model_copy(update={"address": self.nodes.address})
        config = self.config.model_copy(update={"executor": executor})
        log = self.script.folder / f"coordinator-{len(self.coordinators)}.log"
        self.coordinators.append(Coordinator(config, self.run, self.factory, log, self.mirrored))
        self.cleanup.callback(self.coordinators[-1].close)
        return self.coordinators[-1]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for what the coordinator brings about."""
        return self.coordinators[-1].until(condition, what)

    def attempt(self, number: int = 1) -> Attempt:
        """Wait until the victim is scored for the `number`-th time."""
        attempts: list[Attempt] = self.until(
            lambda: len(found := self.script.attempts(self.victim)) >= number and found, f"attempt {number}"
        )
        return attempts[number - 1]

    def outcome(self) -> Evaluated:
        """Wait for the victim's outcome."""
        found: list[Evaluated] = self.until(
            lambda: [
                event
                for event in self.events()
                if isinstance(event, Evaluated) and (event.candidate, event.split) == (VICTIM, "search")
            ],
            "the victim's outcome",
        )
        return found[0]

    def events(self) -> list[Event]:
        """Return what is journaled."""
        return read_journal(self.run / "journal.jsonl")

    def disk(self) -> Path:
        """Give the run a small disk of its own, where this machine lets us; return its folder."""
        disk = self.run.parent / "disk"
        disk.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]
        if subprocess.run(mounting, capture_output=True, check=False).returncode == 0:
            self.cleanup.callback(subprocess.run, ["umount", "--lazy", disk], check=True)
        self.run = disk / "run"
        return disk

    def mirror(self) -> S3Server:
        """Give the run a mirror on a real S3 server."""
        server = S3Server()
        self.cleanup.callback(server.stop)
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        variables = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": server.url,
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        self.mirrored = Mirrored(f"s3://{BUCKET}/run", variables)
        return server


@contextmanager
def full(disk: Path, pid: int) -> Iterator[None]:
    """Fill a disk; where it is none of its own, let a process write no file further than where the journal stands."""
    if not disk.is_mount():
        size = (disk / "run" / "journal.jsonl").stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
        yield
        return
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b" " * 4096)
    yield
    filler.unlink()
