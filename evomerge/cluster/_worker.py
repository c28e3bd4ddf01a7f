"""What runs inside a Ray worker process."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass

from evomerge.cluster._visible import Mark, check
from evomerge.cluster.faults import Fault
from evomerge.cluster.types import Job, ScorerFactory
from evomerge.errors import EvaluationError, StateError
from evomerge.fitness.types import Evaluation, Scorer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """An evaluation and the seconds that it took."""

    evaluation: Evaluation
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs."""

    name: str
    """Host and process id, for people."""
    node: str
    """Ray's id of the node."""


class Worker:
    """The actor: one scorer, one call at a time. Exceptions come back as data, so every one of them arrives.

    The constructor does nothing: `hello` answers as soon as the process runs, and `start` builds the scorer, so
    the coordinator can tell a worker that waits for resources from one that takes long to start.
    """

    def __init__(self, factory: ScorerFactory) -> None:
        self._factory = factory
        self._scorer: Scorer | None = None
        self._last: tuple[str, int, Scored | Fault] | None = None

    def hello(self) -> Place:
        """Return where the process runs."""
        import ray

        return Place(f"{socket.gethostname()}:{os.getpid()}", ray.get_runtime_context().get_node_id())

    def start(self, visible: tuple[Mark, ...] = ()) -> Fault | None:
        """Check that this node sees what it should, and build the scorer; return what went wrong, if anything did."""
        try:
            check(visible, socket.gethostname())
            self._scorer = self._factory()
        except (Exception, SystemExit) as error:  # noqa: BLE001  judged by the coordinator
            _log.exception("the scorer could not be built")  # the traceback goes to Ray's log of this worker
            return Fault.of(error)
        return None

    def score(self, job: Job, attempt: int) -> Scored | Fault:
        """Score a job's recipe."""
        answer = self._score(job)
        self._last = (job.key, attempt, answer)
        return answer

    def recall(self, key: str, attempt: int) -> Scored | Fault:
        """Return the answer to an attempt again: it may have been lost on its way."""
        if self._last is not None and self._last[:2] == (key, attempt):
            return self._last[2]
        return Fault.of(EvaluationError("the job never reached its worker"))

    def _score(self, job: Job) -> Scored | Fault:
        if self._scorer is None:
            return Fault.of(StateError("the worker was given a job before it had a scorer"))
        started = time.perf_counter()
        try:
            evaluation = job.run(self._scorer)
        except (Exception, SystemExit) as error:  # noqa: BLE001  judged by the coordinator
            _log.exception("scoring raised")
            return Fault.of(error)
        return Scored(evaluation, time.perf_counter() - started)

    def close(self) -> None:
        """Free what the scorer holds."""
        if self._scorer is not None:
            self._scorer.close()
            self._scorer = None
