"""Scoring in this process, one job at a time."""

from __future__ import annotations

import contextlib
import logging
import time

from evomerge.cluster._usage import Usage
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.faults import Fault
from evomerge.cluster.leases import Lease, Leases
from evomerge.cluster.types import Event, Job, ScorerFactory
from evomerge.errors import EvaluationError, EvomergeError, StateError
from evomerge.fitness.types import Scorer

WORKER = "inline"
_log = logging.getLogger(__name__)


class InlineExecutor:
    """The executor with no cluster: `wait` scores the next job itself.

    A hung evaluation hangs `wait` (there is nobody to end it), so `timeout_s` has no effect here, and `wait` may
    take as long as one evaluation. Ctrl-C passes through; the job it interrupts stays open and is the next one.

    Args:
        config: `attempts` and `quarantine_after` apply as on a cluster.
        factory: builds the scorer, before the first job.
    """

    def __init__(self, config: ExecutorConfig, factory: ScorerFactory) -> None:
        self._factory = factory
        self._scorer: Scorer | None = None
        self._closed = False
        self._usage = Usage(0.0, time.monotonic())
        self._leases = Leases(
            attempts=config.attempts, quarantine_after=config.quarantine_after, timeout_s=float("inf")
        )

    @property
    def capacity(self) -> int:
        """One job at a time."""
        return 1

    @property
    def open_jobs(self) -> int:
        """How many submitted jobs have neither completed nor failed."""
        return self._leases.open_jobs

    def submit(self, job: Job) -> None:
        """Take a job; it is scored by a later `wait`.

        Raises:
            StateError: when the executor is closed, or a job of the same key is open.
        """
        if self._closed:
            raise StateError("the executor is closed; create another one")
        self._leases.submit(job)

    def wait(self, timeout_s: float) -> list[Event]:  # noqa: ARG002  one evaluation is the unit of work here
        """Score the next job and return what became of it; nothing when no job is open.

        Raises:
            EvomergeError: when the scorer cannot be built.
        """
        if self._closed or not self._leases.open_jobs:
            return []
        scorer = self._ready_scorer()
        lease = self._leases.give(WORKER, 0.0)
        if lease is None:
            return []
        try:
            event = self._score(scorer, lease)
        except BaseException:  # Ctrl-C: the model may be half swapped, so the next job gets a fresh scorer
            self._leases.release(WORKER)
            self._drop_scorer()
            raise
        return [] if event is None else [event]

    def resize(self, workers: int) -> None:
        """Accept one worker, which is what there is.

        Raises:
            StateError: for any other number.
        """
        if workers != 1:
            raise StateError(
                f"this run scores in the coordinator's own process and has 1 worker, not {workers}; for more, pause "
                "it and resume it with `--set executor.kind=ray`"
            )

    def status(self) -> dict[str, float | int | str]:
        """Return a few plain figures for people."""
        return {
            **self._usage.figures(time.monotonic()),
            "workers": 1,
            "workers_ready": int(self._scorer is not None),
            "workers_starting": 0,
            "running": 0,
            "waiting": self._leases.waiting,
            "retried": self._leases.retries,
            "quarantined": self._leases.quarantined,
        }

    def close(self) -> None:
        """Close the scorer; open jobs are dropped. Closing twice is the same as once."""
        self._closed = True
        self._leases.clear()
        self._drop_scorer()

    def _ready_scorer(self) -> Scorer:
        if self._scorer is None:
            try:
                self._scorer = self._factory()
            except EvomergeError:
                raise
            except Exception as error:
                raise EvaluationError(f"the scorer could not be built: {Fault.of(error).reason}") from error
            self._usage.workers(time.monotonic(), ready=1, held=1)
        return self._scorer

    def _score(self, scorer: Scorer, lease: Lease) -> Event | None:
        started = time.perf_counter()
        self._usage.began(WORKER, time.monotonic())
        try:
            evaluation = lease.job.run(scorer)
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever scoring raises is the job's result
            _log.debug("scoring %s raised", lease.job.key, exc_info=True)
            fault = Fault.of(error)
            if fault.worker_lost:
                self._drop_scorer()
                return self._leases.lost(WORKER, fault.reason)
            return self._leases.raised(WORKER, fault)
        finally:
            self._usage.ended(WORKER, time.monotonic())
        return self._leases.complete(WORKER, evaluation, time.perf_counter() - started)

    def _drop_scorer(self) -> None:
        scorer, self._scorer = self._scorer, None
        if scorer is not None:
            self._usage.workers(time.monotonic(), ready=0, held=0)
            with contextlib.suppress(Exception):  # a scorer that fails to close must not hide what happened before
                scorer.close()
