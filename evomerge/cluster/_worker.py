"""What runs inside a Ray worker process."""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass

from evomerge.cluster.faults import Fault
from evomerge.cluster.types import Job, ScorerFactory
from evomerge.errors import StateError
from evomerge.fitness.types import Evaluation, Scorer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """An evaluation and the seconds that it took."""

    evaluation: Evaluation
    seconds: float


class Worker:
    """The actor: one scorer, one call at a time. Exceptions come back as data, so every one of them arrives.

    The constructor does nothing: `hello` answers as soon as the process runs, and `start` builds the scorer, so
    the coordinator can tell a worker that waits for resources from one that takes long to start.
    """

    def __init__(self, factory: ScorerFactory) -> None:
        self._factory = factory
        self._scorer: Scorer | None = None

    def hello(self) -> str:
        """Return where the process runs."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def start(self) -> Fault | None:
        """Build the scorer; return what went wrong, if anything did."""
        try:
            self._scorer = self._factory()
        except (Exception, SystemExit) as error:  # noqa: BLE001  judged by the coordinator
            _log.exception("the scorer could not be built")  # the traceback goes to Ray's log of this worker
            return Fault.of(error)
        return None

    def score(self, job: Job) -> Scored | Fault:
        """Score a job's recipe."""
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
