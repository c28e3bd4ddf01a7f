"""Who works on what, and what a lost attempt means: pure policy, with no cluster and no clock of its own.

A job is given out as a *lease* to one worker. Three things may happen to a lease besides success:

* the scorer raised: an `EvaluationError` is tried again, at most `attempts` times in all; any other exception
  closes the job at once, because trying again cannot mend it. The worker is healthy.
* the worker was lost (died, or gave no answer in time): the job is tried again, unless it was the loss of so
  many workers that it must be the cause. Then it is quarantined.
* the worker was preempted: its machine was taken away. That says nothing about the job and costs no attempt.

Jobs that come back are given out before all others, in the order in which they came back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from evomerge.cluster.faults import Fault
from evomerge.cluster.types import Completed, Failed, Job, Retried
from evomerge.errors import StateError
from evomerge.fitness.types import Evaluation


@dataclass(frozen=True, slots=True)
class Lease:
    """A job in the hands of a worker."""

    job: Job
    worker: str
    attempt: int
    """How often the job has been given out, this time included."""
    deadline_s: float
    """When the worker counts as hung, on the caller's clock."""


@dataclass(slots=True)
class _Open:
    """What is known about a job that is not closed."""

    job: Job
    given: int = 0
    """How often it was given out."""
    lost: int = 0
    """Attempts that count against the limit."""
    killed: int = 0
    """Workers that died or hung over it."""


class Leases:
    """Open jobs, their leases, and the rules by which they are retried, failed or quarantined.

    Args:
        attempts: how often a job is given out at most, preemptions not counted.
        quarantine_after: a job that killed or hung so many workers is closed.
        timeout_s: longest time of one attempt.
    """

    def __init__(self, *, attempts: int, quarantine_after: int, timeout_s: float) -> None:
        self._attempts = attempts
        self._quarantine_after = quarantine_after
        self._timeout_s = timeout_s
        self._open: dict[str, _Open] = {}
        self._again: deque[str] = deque()
        self._queue: deque[str] = deque()
        self._leases: dict[str, Lease] = {}
        self.retries = 0
        """Attempts lost and given out again so far."""
        self.quarantined = 0
        """Jobs quarantined so far."""

    @property
    def open_jobs(self) -> int:
        """How many jobs are neither completed nor failed."""
        return len(self._open)

    @property
    def running(self) -> int:
        """How many jobs are in the hands of a worker."""
        return len(self._leases)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        return len(self._again) + len(self._queue)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            StateError: when a job of the same key is open.
        """
        if job.key in self._open:
            raise StateError(f"the job {job.key!r} is open already; submit each job once")
        self._open[job.key] = _Open(job)
        self._queue.append(job.key)

    def give(self, worker: str, now_s: float) -> Lease | None:
        """Lease the next job to a worker, or return nothing when none waits.

        Raises:
            StateError: when the worker holds a lease.
        """
        if worker in self._leases:
            raise StateError(f"{worker} holds a lease already; a worker has one job at a time")
        queue = self._again or self._queue
        if not queue:
            return None
        state = self._open[queue.popleft()]
        state.given += 1
        lease = Lease(state.job, worker, state.given, now_s + self._timeout_s)
        self._leases[worker] = lease
        return lease

    def next_deadline_s(self) -> float | None:
        """Return when the first lease runs out."""
        return min((lease.deadline_s for lease in self._leases.values()), default=None)

    def overdue(self, now_s: float) -> tuple[Lease, ...]:
        """Return the leases that ran out, in the order in which they were given."""
        return tuple(lease for lease in self._leases.values() if lease.deadline_s <= now_s)

    def complete(self, worker: str, evaluation: Evaluation, seconds: float) -> Completed:
        """Close a worker's job with its evaluation."""
        lease = self._close(worker)
        return Completed(lease.job, evaluation, lease.attempt, worker, seconds)

    def raised(self, worker: str, fault: Fault) -> Retried | Failed:
        """Record that the scorer raised; the worker is healthy."""
        state = self._open[self._leases[worker].job.key]
        state.lost += 1
        if not fault.retryable:
            return self._fail(worker, fault.reason)
        if state.lost >= self._attempts:
            return self._fail(worker, f"{fault.reason} (attempt {state.lost} of {self._attempts})")
        return self._retry(worker, fault.reason)

    def lost(self, worker: str, reason: str, *, preempted: bool = False) -> Retried | Failed:
        """Record that a worker died or gave no answer in time; `preempted`: its machine was taken away."""
        state = self._open[self._leases[worker].job.key]
        if preempted:
            return self._retry(worker, reason)
        state.lost += 1
        state.killed += 1
        if state.killed >= self._quarantine_after:
            self.quarantined += 1
            lease = self._close(worker)
            text = f"it cost {state.killed} worker{'s' if state.killed > 1 else ''}; the last: {reason}"
            return Failed(lease.job, "quarantined", text, lease.attempt)
        if state.lost >= self._attempts:
            return self._fail(worker, f"{reason} (attempt {state.lost} of {self._attempts})")
        return self._retry(worker, reason)

    def release(self, worker: str) -> None:
        """Take a lease back as if it had never been given; the job is the next to be given out."""
        lease = self._leases.pop(worker)
        self._open[lease.job.key].given -= 1
        self._again.appendleft(lease.job.key)

    def clear(self) -> None:
        """Drop every job."""
        self._open.clear()
        self._again.clear()
        self._queue.clear()
        self._leases.clear()

    def _retry(self, worker: str, reason: str) -> Retried:
        lease = self._leases.pop(worker)
        self._again.append(lease.job.key)
        self.retries += 1
        return Retried(lease.job, lease.attempt, reason, worker)

    def _fail(self, worker: str, reason: str) -> Failed:
        lease = self._close(worker)
        return Failed(lease.job, "error", reason, lease.attempt)

    def _close(self, worker: str) -> Lease:
        lease = self._leases.pop(worker)
        del self._open[lease.job.key]
        return lease
