"""Scoring on Ray actors.

Every worker is an actor with no restarts and no retries of Ray's own and with one call in flight: that is the
only way in which "this recipe killed two workers" can be counted. Workers that die, hang or lose their machine
are replaced here, and `evomerge.cluster.leases` decides what becomes of their jobs. Only recipes and scores pass
through Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.cluster._session import Session, worker_environment
from evomerge.cluster._slot import STARTS, Slot
from evomerge.cluster._worker import Scored, Worker
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.faults import Fault, one_line
from evomerge.cluster.interrupts import interrupts_held
from evomerge.cluster.leases import Leases
from evomerge.cluster.types import Event, Job, ScorerFactory
from evomerge.errors import EvaluationError, StateError
from evomerge.fitness.types import Evaluation

CLOSE_S = 2.0
"""How long idle workers may take to free what they hold; after that they are ended."""


class RayExecutor:
    """Workers on a Ray cluster: one that runs already, or a local one that ends with the executor.

    Create it on the main thread: the local cluster's processes end with the thread that started them. Ctrl-C
    never reaches the workers, so an interrupted `wait` loses nothing: call it again to drain.

    Args:
        config: number and size of the workers, and the limits.
        factory: builds the scorer inside each worker; sent there once a worker.

    Raises:
        ConfigError: when no cluster answers at the address.
        EvaluationError: when no local cluster can be started.
    """

    def __init__(self, config: ExecutorConfig, factory: ScorerFactory) -> None:
        self._config = config
        self._leases = Leases(
            attempts=config.attempts,
            quarantine_after=config.quarantine_after,
            timeout_s=config.timeout_s,
        )
        self._events: list[Event] = []
        self._fatal: Exception | None = None
        self._closed = False
        self._session = Session(config)
        self._slots = self._make_slots(factory)
        self._spawn(time.monotonic())

    @property
    def capacity(self) -> int:
        """How many workers there are when the cluster has room for all."""
        return self._config.workers

    @property
    def open_jobs(self) -> int:
        """How many submitted jobs have neither completed nor failed."""
        return self._leases.open_jobs

    def submit(self, job: Job) -> None:
        """Take a job; it starts at once where a worker is free.

        Raises:
            StateError: when the executor is closed, or a job of the same key is open.
        """
        if self._closed:
            raise StateError("the executor is closed; create another one")
        with interrupts_held():
            self._leases.submit(job)
            self._dispatch()

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened, waiting at most `timeout_s` seconds for something to happen.

        Raises:
            EvomergeError: when the scorer cannot be built, no worker can be started, or the cluster is gone.
        """
        end = time.monotonic() + max(0.0, timeout_s)
        while not self._closed:
            with interrupts_held():
                now = time.monotonic()
                self._spawn(now)
                self._dispatch()
            idle = bool(self._events) or not self._leases.open_jobs or self._fatal is not None
            ready = self._ready(0.0 if idle else self._pause(now, end))
            with interrupts_held():
                for slot in ready:
                    self._receive(slot)
                self._expire(time.monotonic())
                self._dispatch()
            if self._events or not self._leases.open_jobs or self._fatal or time.monotonic() >= end:
                break
        return self._take()

    def status(self) -> dict[str, float | int | str]:
        """Return a few plain figures for people."""
        counts = {state: sum(slot.state == state for slot in self._slots) for state in ("ready", "starting", "pending")}
        figures: dict[str, float | int | str] = {
            "workers": len(self._slots),
            "workers_ready": counts["ready"],
            "workers_starting": len(self._slots) - counts["ready"],
            "running": self._leases.running,
            "waiting": self._leases.waiting,
            "retried": self._leases.retries,
            "quarantined": self._leases.quarantined,
        }
        if counts["pending"] and counts["ready"]:
            figures["note"] = f"{counts['pending']} workers wait for room on {self._session.place}"
        return figures

    def close(self) -> None:
        """Stop the workers, and the cluster if it is our own; open jobs are dropped. May be called again."""
        if self._closed:
            return
        self._closed, self._fatal = True, None
        self._events.clear()
        self._leases.clear()
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to close
            import ray

            closing = [slot.actor.close.remote() for slot in self._slots if slot.state == "ready" and slot.ref is None]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for slot in self._slots:
            slot.end()
        self._session.close()

    def _make_slots(self, factory: ScorerFactory) -> list[Slot]:
        import ray

        config = self._config
        actors = ray.remote(Worker).options(
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=1,
            runtime_env={"env_vars": worker_environment(config)},
        )
        return [Slot(f"worker-{index}", lambda: actors.remote(factory)) for index in range(config.workers)]

    def _take(self) -> list[Event]:
        if not self._events and self._fatal is not None:
            raise self._fatal
        events, self._events = self._events, []
        return events

    def _pause(self, now: float, end: float) -> float:
        """Return how long nothing needs to be looked at unless a call answers."""
        times = [end, self._leases.next_deadline_s(), *(slot.wakes_s(self._config) for slot in self._slots)]
        return max(0.0, min(moment for moment in times if moment is not None) - now)

    def _ready(self, timeout_s: float) -> list[Slot]:
        """Return the workers whose call has answered, waiting for one; in the order of the workers."""
        calls = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        if not calls:
            time.sleep(min(timeout_s, 0.1))
            return []
        import ray

        with self._cluster_errors():
            refs = list(calls)
            if ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
                answered = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
                return [slot for ref, slot in calls.items() if ref in answered]
        return []

    def _spawn(self, now: float) -> None:
        """Start a worker in every empty slot whose turn it is."""
        with self._cluster_errors():
            for slot in self._slots:
                if slot.state == "empty" and now >= slot.not_before_s:
                    slot.spawn(now)

    def _dispatch(self) -> None:
        """Give every free worker a job."""
        with self._cluster_errors():
            for slot in self._slots:
                if slot.state == "ready" and slot.ref is None:
                    lease = self._leases.give(slot.name, time.monotonic())
                    if lease is None:
                        return
                    slot.ref = slot.actor.score.remote(lease.job)

    def _receive(self, slot: Slot) -> None:
        """Act on the answer of a worker."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        ref, slot.ref = slot.ref, None
        try:
            answer = ray.get(ref)
        except RayTaskError as error:  # the answer could not be sent, for instance: the worker itself is fine
            cause = one_line(str(getattr(error, "cause", None) or error))
            self._answered(slot, Fault(reason=f"the worker's answer did not arrive: {cause}", error=None))
        except RayError as error:  # RayActorError is Died and Unavailable alike
            preempted = bool(getattr(error, "preempted", False))
            self._lose(slot, _why(error), preempted=preempted)
        else:
            self._answered(slot, answer)

    def _answered(self, slot: Slot, answer: Any) -> None:
        """Act on what a worker returned: its place, the end of its start, or a job's result."""
        if slot.state == "pending" and isinstance(answer, str):
            slot.start(answer, time.monotonic())
        elif slot.state == "starting" and answer is None:
            slot.ready()
        elif slot.state != "ready" and isinstance(answer, Fault):
            if answer.error is not None and not answer.retryable:
                self._fatal = answer.exception()
            self._lose(slot, answer.reason)
        elif isinstance(answer, Scored):
            self._events.append(self._leases.complete(slot.name, _owned(answer.evaluation), answer.seconds))
        elif isinstance(answer, Fault) and answer.worker_lost:
            self._lose(slot, f"gave up ({answer.reason})")
        elif isinstance(answer, Fault):
            self._events.append(self._leases.raised(slot.name, answer))

    def _lose(self, slot: Slot, reason: str, *, preempted: bool = False) -> None:
        """End a worker; its job is retried or closed, and the slot gets another worker."""
        if slot.state != "ready":
            self._start_lost(slot, reason, preempted=preempted)
            return
        slot.end()
        self._events.append(self._leases.lost(slot.name, f"{slot.place} {reason}", preempted=preempted))

    def _start_lost(self, slot: Slot, reason: str, *, preempted: bool = False, hung: bool = False) -> None:
        """End a worker that did not become ready; the slot gets another one, unless nothing ever works."""
        slot.end()
        if not preempted:
            slot.start_failed(time.monotonic(), hung=hung)
        nobody_works = not any(other.state == "ready" for other in self._slots)
        if slot.failed_starts >= STARTS and nobody_works and self._fatal is None:
            self._fatal = EvaluationError(
                f"no worker starts on {self._session.place}; {slot.name}, the last time: {reason} (tracebacks are "
                "in Ray's logs, /tmp/ray/session_latest/logs)"
            )

    def _expire(self, now: float) -> None:
        """End workers that gave no answer in time."""
        for lease in self._leases.overdue(now):
            slot = next(slot for slot in self._slots if slot.name == lease.worker)
            self._lose(slot, f"gave no answer within {self._config.timeout_s:g} s")
        for slot in self._slots:
            if slot.hung(now, self._config):
                self._start_lost(slot, f"not ready within {self._config.start_timeout_s:g} s", hung=True)
        if self._fatal is None and all(slot.starved(now, self._config) for slot in self._slots):
            self._fatal = EvaluationError(
                f"{self._session.place} gave no worker its {self._config.cpus_per_worker:g} CPUs and "
                f"{self._config.gpus_per_worker:g} GPUs within {self._config.start_timeout_s:g} s; free some, or "
                "lower executor.cpus_per_worker or executor.gpus_per_worker"
            )

    @contextlib.contextmanager
    def _cluster_errors(self) -> Iterator[None]:
        """Turn Ray's own failures into one error that says so."""
        from ray.exceptions import RayError

        try:
            yield
        except (RayError, ConnectionError) as error:
            self._fatal = EvaluationError(f"{self._session.place} is gone: {one_line(str(error))}")


def _owned(evaluation: Evaluation) -> Evaluation:
    """Copy the arrays out of Ray's store, which they would keep occupied, and where they are read-only."""
    samples = {name: np.array(array) for name, array in evaluation.samples.items()}
    return dataclasses.replace(evaluation, samples=samples)


def _why(error: Exception) -> str:
    """Say in a few words how a worker was lost."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Worker exit detail:" in line), "")
    if told:
        detail = told.split("Worker exit detail:", 1)[1].split("Some common causes", 1)[0].strip()
        return one_line(f"died ({detail})")
    if "creation task" in str(error):  # the last line of the traceback names the exception
        return one_line(f"died ({lines[-1]})")
    return one_line(f"was lost ({type(error).__name__}: {lines[0] if lines else ''})")
