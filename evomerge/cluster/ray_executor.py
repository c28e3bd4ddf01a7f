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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cluster import _nodes
from evomerge.cluster._crew import Crew
from evomerge.cluster._losses import Loss, loss_of
from evomerge.cluster._nodes import Nodes
from evomerge.cluster._placement import misfit
from evomerge.cluster._session import Session
from evomerge.cluster._slot import STARTS, UNREACHABLE_S, Slot
from evomerge.cluster._usage import Usage
from evomerge.cluster._visible import marks
from evomerge.cluster._worker import Place, Scored
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.faults import Fault, one_line
from evomerge.cluster.interrupts import interrupts_held
from evomerge.cluster.leases import Leases
from evomerge.cluster.types import Event, Job, ScorerFactory
from evomerge.errors import EvaluationError, StateError
from evomerge.fitness.types import Evaluation

JOIN_S = 15.0
"""How long a cluster without an autoscaler may take to show a node that has room for a worker at all."""


class RayExecutor:
    """Workers on a Ray cluster: one that runs already, or a local one that ends with the executor.

    Create it on the main thread: the local cluster's processes end with the thread that started them. Ctrl-C
    never reaches the workers, so an interrupted `wait` loses nothing: call it again to drain.

    Args:
        config: number and size of the workers, and the limits.
        factory: builds the scorer inside each worker; sent there once a worker.
        visible: files and folders that every node must see as the coordinator does; their content must not change
            during the run, so of a run folder give a file that stays.

    Raises:
        ConfigError: when no cluster answers at the address, or it cannot be joined.
        EvaluationError: when no local cluster can be started.
    """

    def __init__(self, config: ExecutorConfig, factory: ScorerFactory, visible: Sequence[Path] = ()) -> None:
        self._config = config
        self._leases = Leases(
            attempts=config.attempts,
            quarantine_after=config.quarantine_after,
            timeout_s=config.timeout_s,
            timeout_factor=config.timeout_factor,
        )
        self._events: list[Event] = []
        self._fatal: Exception | None = None
        self._closed = False
        self._worked = False
        self._visible = marks(visible) if config.address is not None else ()
        self._session = Session(config)
        now = time.monotonic()
        self._nodes = Nodes(now)
        self._checked = {self._nodes.own}
        self._usage = Usage(config.gpus_per_worker, now)
        self._crew = Crew(config, factory, own_cluster=self._session.own)

    @property
    def capacity(self) -> int:
        """How many workers there are when the cluster has room for all."""
        return self._crew.capacity

    @property
    def open_jobs(self) -> int:
        """How many submitted jobs have neither completed nor failed."""
        return self._leases.open_jobs

    def submit(self, job: Job) -> None:
        """Take a job; it starts at once where a worker is free.

        Raises:
            StateError: when the executor is closed, or a job of the same key is open.
        """
        self._check_open()
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
                self._look(time.monotonic())
                self._dispatch()
            idle = bool(self._events) or not self._leases.open_jobs or self._fatal is not None
            ready = self._ready(0.0 if idle else self._pause(time.monotonic(), end))
            with interrupts_held():
                for slot in ready:
                    self._receive(slot)
                self._expire(time.monotonic())
                self._dispatch()
            if self._events or not self._leases.open_jobs or self._fatal or time.monotonic() >= end:
                break
        return self._take()

    def resize(self, workers: int) -> None:
        """Work with so many workers from now on; surplus ones finish what they score and then end.

        Raises:
            StateError: when the executor is closed, or for less than one worker.
        """
        self._check_open()
        if workers < 1:
            raise StateError(f"a run needs at least 1 worker, not {workers}; to have none for a while, pause it")
        with interrupts_held():
            self._crew.resize(workers)
            self._crew.let_go(self._nodes)

    def status(self) -> dict[str, float | int | str]:
        """Return a few plain figures for people; `note` says what workers wait for, if they do."""
        ready, pending = self._crew.count("ready"), self._crew.count("pending")
        figures: dict[str, float | int | str] = {
            **self._usage.figures(time.monotonic()),
            "workers": self.capacity,
            "workers_ready": ready,
            "workers_starting": max(0, self.capacity - ready),
            "nodes": max(1, len(self._nodes.alive)),
            "running": self._leases.running,
            "waiting": self._leases.waiting,
            "retried": self._leases.retries,
            "quarantined": self._leases.quarantined,
        }
        if not self._nodes.answering:
            figures["note"] = f"the head of {self._session.place} does not answer"
        elif pending and ready:
            figures["note"] = f"{pending} workers wait for room on {self._session.place}"
        return figures

    def close(self) -> None:
        """Stop the workers, and the cluster if it is our own; open jobs are dropped. May be called again."""
        if self._closed:
            return
        self._closed, self._fatal = True, None
        self._events.clear()
        self._leases.clear()
        now = time.monotonic()
        self._nodes.poll(now)
        gone = not self._nodes.answering or self._nodes.gone(now)
        if not gone:
            self._crew.close()
        self._session.close(gone=gone)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the executor is closed; create another one")

    def _look(self, now: float) -> None:
        """See how the cluster is; workers on nodes that are going end when they are free, and others start."""
        self._nodes.poll(now)
        if self._nodes.gone(now):
            silent = not self._nodes.answering
            self._gone(
                f"its head has not answered for {_nodes.SILENT_S:g} s" if silent else "its node on this machine ended"
            )
        elif self._nodes.answering:
            self._crew.let_go(self._nodes)
            with self._cluster_errors():
                self._crew.spawn(now, self._leases.waiting)
        self._count()

    def _count(self) -> None:
        """Note how many workers hold their resources."""
        ready = self._crew.count("ready") + self._crew.count("silent")
        self._usage.workers(time.monotonic(), ready=ready, held=ready + self._crew.count("starting"))

    def _take(self) -> list[Event]:
        if not self._events and self._fatal is not None:
            raise self._fatal
        events, self._events = self._events, []
        return events

    def _pause(self, now: float, end: float) -> float:
        """Return how long nothing needs to be looked at unless a call answers."""
        times = [end, self._nodes.next_poll_s(), self._leases.next_deadline_s(), self._crew.wakes_s()]
        return max(0.0, min(moment for moment in times if moment is not None) - now)

    def _ready(self, timeout_s: float) -> list[Slot]:
        """Return the workers whose call has answered, waiting for one; in the order of the workers."""
        calls = {slot.ref: slot for slot in self._crew if slot.ref is not None}
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

    def _dispatch(self) -> None:
        """Give every free worker a job."""
        with self._cluster_errors():
            for slot in self._crew.free(self._nodes):
                lease = self._leases.give(slot.name, time.monotonic())
                if lease is None:
                    return
                slot.score(lease)
                self._usage.began(slot.name, time.monotonic())

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
        except RayError as error:
            loss = loss_of(error)
            if loss.unreachable and slot.state == "ready":
                slot.fall_silent(time.monotonic())
            elif not (loss.unreachable and slot.state == "silent"):
                self._lose(slot, loss)
        else:
            self._answered(slot, answer)

    def _answered(self, slot: Slot, answer: Any) -> None:
        """Act on what a worker returned: its place, the end of its start, or a job's result."""
        if slot.state == "pending" and isinstance(answer, Place):
            visible = () if answer.node in self._checked else self._visible
            slot.start(answer, visible, time.monotonic())
            self._checked.add(answer.node)
        elif slot.state == "starting" and answer is None:
            slot.ready()
            self._worked = True
        elif slot.state in ("pending", "starting") and isinstance(answer, Fault):
            if answer.error is not None and not answer.retryable:
                self._fatal = answer.exception()
            self._lose(slot, Loss(answer.reason))
        elif isinstance(answer, Scored):
            self._usage.ended(slot.name, time.monotonic(), answer.seconds)
            slot.ready()
            self._emit(self._leases.complete(slot.name, _owned(answer.evaluation), answer.seconds))
        elif isinstance(answer, Fault) and answer.worker_lost:
            self._lose(slot, Loss(f"gave up ({answer.reason})"))
        elif isinstance(answer, Fault):
            self._usage.ended(slot.name, time.monotonic())
            slot.ready()
            self._emit(self._leases.raised(slot.name, answer))

    def _emit(self, event: Event | None) -> None:
        """Keep an event for `wait`; None stands for an answer that came when its job was closed."""
        if event is not None:
            self._events.append(event)

    def _lose(self, slot: Slot, loss: Loss) -> None:
        """End a worker; its job is retried or closed, and the slot gets another worker."""
        node, place, held = slot.node, slot.place, self._leases.held_by(slot.name)
        preempted = loss.preempted or self._nodes.taken_away(node)
        node_died = loss.node_died or self._nodes.lost(node)
        if slot.state in ("pending", "starting"):
            self._start_lost(slot, loss.reason, blameless=preempted or node_died)
            return
        slot.end()
        self._usage.ended(slot.name, time.monotonic())
        self._leases.forget(slot.name)
        if held is not None:
            reason = f"{place} {loss.reason}"
            self._emit(self._leases.lost(slot.name, reason, preempted=preempted, blameless=node_died))

    def _start_lost(self, slot: Slot, reason: str, *, blameless: bool = False, hung: bool = False) -> None:
        """End a worker that did not become ready; the slot gets another one, unless nothing ever works."""
        slot.end()
        if not blameless:
            slot.start_failed(time.monotonic(), hung=hung)
        if slot.failed_starts >= STARTS and not self._crew.count("ready") and self._fatal is None:
            self._fatal = EvaluationError(
                f"no worker starts on {self._session.place}; {slot.name}, the last time: {reason} (tracebacks are "
                "in Ray's logs, /tmp/ray/session_latest/logs)"
            )

    def _expire(self, now: float) -> None:
        """Give away the jobs of workers that gave no answer in time, and end workers that are given up."""
        if not self._nodes.answering:
            return
        for lease in self._leases.overdue(now):
            self._give_away(self._crew[lease.worker], f"gave no answer within {lease.limit_s:g} s", now)
        for slot in self._crew:
            if slot.state == "silent":
                self._attend(slot, now)
            elif slot.hung(now, self._config):
                self._start_lost(slot, f"not ready within {self._config.start_timeout_s:g} s", hung=True)
        if self._fatal is None:
            self._check_room(now)

    def _give_away(self, slot: Slot, reason: str, now: float) -> None:
        """Take a silent worker's job from it; its late answer is welcome for a while."""
        self._emit(self._leases.lost(slot.name, f"{slot.place} {reason}", may_answer=True))
        self._usage.ended(slot.name, now)
        slot.given_away(now)

    def _attend(self, slot: Slot, now: float) -> None:
        """Ask a silent worker for its answer, or give it up."""
        held = self._leases.held_by(slot.name)
        if held is not None and now >= slot.until_s:
            self._give_away(slot, f"was out of reach for {UNREACHABLE_S:g} s", now)
        elif held is None and (now >= slot.until_s or not self._leases.expects(slot.name)):
            self._leases.forget(slot.name)
            slot.end()
        else:
            with self._cluster_errors():
                slot.ask(now)

    def _check_room(self, now: float) -> None:
        """Say so when no worker has room, and none will have."""
        if any(slot.state in ("starting", "ready", "silent") for slot in self._crew):
            return
        config, pending = self._config, [slot for slot in self._crew if slot.state == "pending"]
        if any(slot.starved(now, config) for slot in pending):
            self._fatal = EvaluationError(
                f"{self._session.place} gave no worker its {config.cpus_per_worker:g} CPUs and "
                f"{config.gpus_per_worker:g} GPUs within {config.start_timeout_s:g} s; free some, or "
                "lower executor.cpus_per_worker or executor.gpus_per_worker"
            )
        elif not (self._worked or self._nodes.autoscaled):
            patience_s = 0.0 if self._session.own else JOIN_S
            lacking = misfit(config, self._nodes.alive.values(), own_cluster=self._session.own)
            if lacking is not None and any(now - slot.since_s >= patience_s for slot in pending):
                self._fatal = EvaluationError(f"{self._session.place}: {lacking}")

    @contextlib.contextmanager
    def _cluster_errors(self) -> Iterator[None]:
        """Turn Ray's own failures into one error that says so."""
        from ray.exceptions import RayError

        try:
            yield
        except (RayError, ConnectionError) as error:
            self._gone(one_line(str(error)))

    def _gone(self, why: str) -> None:
        if self._fatal is None:
            self._fatal = EvaluationError(
                f"{self._session.place} is gone ({why}); everything journaled is kept: start the cluster again, and "
                "`evomerge resume RUN` continues the run"
            )


def _owned(evaluation: Evaluation) -> Evaluation:
    """Copy the arrays out of Ray's store, which they would keep occupied, and where they are read-only."""
    samples = {name: np.array(array) for name, array in evaluation.samples.items()}
    return dataclasses.replace(evaluation, samples=samples)
