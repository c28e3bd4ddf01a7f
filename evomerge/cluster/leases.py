"""Who works on what, and what a lost attempt means: pure policy, with no cluster and no clock of its own.

A job is given out as a *lease* to one worker. Four things may happen to a lease besides success:

* the scorer raised: an `EvaluationError` is tried again, at most `attempts` times in all; any other exception
  closes the job at once, because trying again cannot mend it. The worker is healthy.
* the worker was lost (died, or gave no answer in time): the job is tried again, unless it was the loss of so
  many workers that it must be the cause. Then it is quarantined.
* the worker's whole machine was lost: the job is tried again at no cost, since several machines may go at once; only
  a job that lost `MACHINES` of them is closed.
* the worker was preempted: its machine was taken away. That says nothing about the job and costs no attempt.

Jobs that come back are given out before all others, in the order in which they came back.

A worker that gave no answer in time may answer late, when its job has been given away. The first answer closes the
job, whoever gives it; every other one is dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from evomerge.cluster._limits import Limits
from evomerge.cluster.faults import Fault
from evomerge.cluster.types import Completed, Failed, Job, Retried
from evomerge.errors import StateError
from evomerge.fitness.types import Evaluation

MACHINES = 10
"""A job during which so many machines were lost is closed: it may be what takes them down."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A job in the hands of a worker."""

    job: Job
    worker: str
    attempt: int
    """How often the job has been given out, this time included."""
    deadline_s: float
    """When the worker counts as hung, on the caller's clock."""
    limit_s: float
    """How long the attempt may take."""


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
    machines: int = 0
    """Machines that were lost while they worked on it."""


class Leases:
    """Open jobs, their leases, and the rules by which they are retried, failed or quarantined.

    Args:
        attempts: how often a job is given out at most, preemptions not counted.
        quarantine_after: a job that killed or hung so many workers is closed.
        timeout_s: longest time of one attempt.
        timeout_factor: where given, an attempt may take so many times the longest success of its kind.
    """

    def __init__(
        self, *, attempts: int, quarantine_after: int, timeout_s: float, timeout_factor: float | None = None
    ) -> None:
        self._attempts = attempts
        self._quarantine_after = quarantine_after
        self._limits = Limits(timeout_s, timeout_factor)
        self._open: dict[str, _Open] = {}
        self._again: deque[str] = deque()
        self._queue: deque[str] = deque()
        self._leases: dict[str, Lease] = {}
        self._late: dict[str, Lease] = {}
        """Leases that were taken from a worker which may still answer."""
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
        """How many open jobs are in the hands of a worker."""
        return sum(self._is_open(lease) for lease in self._leases.values())

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
        limit_s = self._limits.limit_s(state.job)
        lease = Lease(state.job, worker, state.given, now_s + limit_s, limit_s)
        self._leases[worker] = lease
        return lease

    def next_deadline_s(self) -> float | None:
        """Return when the first lease runs out."""
        return min((lease.deadline_s for lease in self._leases.values()), default=None)

    def overdue(self, now_s: float) -> tuple[Lease, ...]:
        """Return the leases that ran out, in the order in which they were given."""
        return tuple(lease for lease in self._leases.values() if lease.deadline_s <= now_s)

    def held_by(self, worker: str) -> Lease | None:
        """Return the lease that a worker holds."""
        return self._leases.get(worker)

    def expects(self, worker: str) -> bool:
        """Tell whether a late answer of the worker would close a job."""
        lease = self._late.get(worker)
        return lease is not None and self._is_open(lease)

    def forget(self, worker: str) -> None:
        """Expect no late answer of the worker any more."""
        self._late.pop(worker, None)

    def complete(self, worker: str, evaluation: Evaluation, seconds: float) -> Completed | None:
        """Close a worker's job with its evaluation, be it late; None where another answer has closed it."""
        lease = self._take(worker)
        self._limits.learn(lease.job, seconds)
        if not self._is_open(lease):
            return None
        self._close(lease)
        return Completed(lease.job, evaluation, lease.attempt, worker, seconds)

    def raised(self, worker: str, fault: Fault) -> Retried | Failed | None:
        """Record that the scorer raised; the worker is healthy. None where the job is closed, or was given away."""
        given_away = worker not in self._leases
        lease = self._take(worker)
        if given_away or not self._is_open(lease):
            return None
        state = self._open[lease.job.key]
        state.lost += 1
        if not fault.retryable:
            return self._fail(lease, fault.reason)
        if state.lost >= self._attempts:
            return self._fail(lease, f"{fault.reason} (attempt {state.lost} of {self._attempts})")
        return self._retry(lease, fault.reason)

    def lost(
        self, worker: str, reason: str, *, preempted: bool = False, blameless: bool = False, may_answer: bool = False
    ) -> Retried | Failed | None:
        """Record that a worker died or gave no answer in time; None where its job is closed.

        Args:
            worker: who held the lease.
            reason: for people.
            preempted: its machine was taken away; that costs no attempt.
            blameless: its machine was lost; that costs no attempt either, `MACHINES` times.
            may_answer: the worker is not known to be dead, and its late answer is welcome until `forget`.
        """
        lease = self._take(worker)
        if not self._is_open(lease):
            return None
        state = self._open[lease.job.key]
        state.machines += blameless
        state.lost += not (preempted or blameless)
        state.killed += not (preempted or blameless)
        if state.killed >= self._quarantine_after:
            self.quarantined += 1
            self._close(lease)
            text = f"it cost {state.killed} worker{'s' if state.killed > 1 else ''}; the last: {reason}"
            return Failed(lease.job, "quarantined", text, lease.attempt)
        if state.lost >= self._attempts:
            return self._fail(lease, f"{reason} (attempt {state.lost} of {self._attempts})")
        if state.machines >= MACHINES:
            return self._fail(lease, f"{reason} (the loss of {MACHINES} machines)")
        if may_answer:
            self._late[worker] = lease
        return self._retry(lease, reason)

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
        self._late.clear()

    def _take(self, worker: str) -> Lease:
        """Take the lease that a worker holds, or the one that was taken from it."""
        return self._leases.pop(worker) if worker in self._leases else self._late.pop(worker)

    def _is_open(self, lease: Lease) -> bool:
        state = self._open.get(lease.job.key)
        return state is not None and state.job is lease.job

    def _retry(self, lease: Lease, reason: str) -> Retried:
        self._again.append(lease.job.key)
        self.retries += 1
        return Retried(lease.job, lease.attempt, reason, lease.worker)

    def _fail(self, lease: Lease, reason: str) -> Failed:
        self._close(lease)
        return Failed(lease.job, "error", reason, lease.attempt)

    def _close(self, lease: Lease) -> None:
        key = lease.job.key
        del self._open[key]
        for queue in (self._again, self._queue):
            if key in queue:  # a late answer, while the job waited for another worker
                queue.remove(key)
