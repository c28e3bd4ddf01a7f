"""Jobs, what becomes of them, and the `Executor` interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from evomerge.fitness.types import Evaluation, Minibatch, Scorer, Split
from evomerge.recipe import Recipe

ScorerFactory = Callable[[], Scorer]
"""Builds the scorer inside the worker. It must survive being sent to another process."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recipe to score on one split."""

    key: str
    """Unique among the jobs of a run, for instance `12/search`."""
    recipe: Recipe
    split: Split
    minibatch: Minibatch | None = None
    """Score a random part of the split alone."""

    def run(self, scorer: Scorer) -> Evaluation:
        """Have it scored."""
        if self.minibatch is None:
            return scorer.score(self.recipe, self.split)
        return scorer.score(self.recipe, self.split, self.minibatch)


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt was lost and the job was given out again; the job is still open."""

    job: Job
    attempt: int
    """Number of the attempt that was lost, from 1."""
    reason: str
    worker: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The job was scored."""

    job: Job
    evaluation: Evaluation
    attempt: int
    worker: str
    seconds: float
    """Wall time of the successful attempt, as the worker measured it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job is closed without a score."""

    job: Job
    kind: Literal["error", "quarantined"]
    """`error`: trying again did not or would not mend it; `quarantined`: it killed or hung too many workers."""
    reason: str
    attempt: int


Event = Retried | Completed | Failed


class Executor(Protocol):
    """Where scoring runs. Used by one thread."""

    @property
    def capacity(self) -> int:
        """How many jobs it works on at once."""
        ...

    @property
    def open_jobs(self) -> int:
        """How many submitted jobs have neither completed nor failed."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job. More than `capacity` jobs wait in order."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened, waiting at most `timeout_s` seconds for something to happen.

        Raises:
            EvomergeError: when the workers cannot work at all (they fail to start, the cluster is gone).
        """
        ...

    def resize(self, workers: int) -> None:
        """Work with so many workers from now on: `capacity` follows at once, surplus workers finish their job first.

        Raises:
            StateError: when it cannot have so many.
        """
        ...

    def status(self) -> dict[str, float | int | str]:
        """Return a few plain figures for people.

        Among them `workers`, `workers_ready`, `workers_starting`, `retried`, `busy_share` (0 to 1: seconds that
        workers scored over seconds that they were ready) and `gpu_seconds` (seconds times GPUs that workers held),
        both since the executor was created.
        """
        ...

    def close(self) -> None:
        """Stop the workers; open jobs are dropped."""
        ...
