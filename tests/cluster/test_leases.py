"""The policy of leases, retries and quarantine."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.cluster.faults import Fault
from evomerge.cluster.leases import Lease, Leases
from evomerge.cluster.types import Completed, Event, Failed, Retried
from evomerge.errors import ConfigError, EvaluationError, NotBuiltError, StateError, WorkerLostError
from evomerge.fitness.types import Evaluation
from evomerge.testing.executors import jobs

RETRYABLE = Fault.of(EvaluationError("try again"))
FINAL = Fault.of(ValueError("no use"))
SCORED = Evaluation("search")


def policy(num_jobs: int = 1, *, attempts: int = 3, quarantine_after: int = 2, timeout_s: float = 10.0) -> Leases:
    leases = Leases(attempts=attempts, quarantine_after=quarantine_after, timeout_s=timeout_s)
    for job in jobs(range(num_jobs)):
        leases.submit(job)
    return leases


def given_to(leases: Leases, worker: str = "w", now_s: float = 0.0) -> Lease:
    lease = leases.give(worker, now_s)
    assert lease is not None
    return lease


def test_jobs_are_given_out_in_the_order_of_submission() -> None:
    leases = policy(3)
    keys = [given_to(leases, worker).job.key for worker in "abc"]
    assert keys == ["0/search", "1/search", "2/search"]
    assert leases.give("d", 0.0) is None
    assert (leases.open_jobs, leases.running, leases.waiting) == (3, 3, 0)


def test_jobs_that_come_back_go_before_the_others_in_the_order_of_their_loss() -> None:
    leases = policy(4)
    given_to(leases, "a"), given_to(leases, "b")
    leases.lost("b", "died")
    leases.raised("a", RETRYABLE)
    assert [given_to(leases, worker).job.key for worker in "abcd"] == [
        "1/search",
        "0/search",
        "2/search",
        "3/search",
    ]


def test_a_lease_runs_out_at_its_deadline() -> None:
    leases = policy(2, timeout_s=10)
    given_to(leases, "a", 100.0)
    given_to(leases, "b", 105.0)
    assert leases.next_deadline_s() == 110.0
    assert leases.overdue(109.9) == ()
    assert [lease.worker for lease in leases.overdue(110.0)] == ["a"]
    assert [lease.worker for lease in leases.overdue(200.0)] == ["a", "b"]


def test_retryable_errors_end_at_the_limit_and_do_not_quarantine() -> None:
    leases = policy(attempts=3, quarantine_after=1)
    events = []
    for _ in range(3):
        given_to(leases)
        events.append(leases.raised("w", RETRYABLE))
    assert [type(event) for event in events] == [Retried, Retried, Failed]
    assert [event.attempt for event in events] == [1, 2, 3]
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "error"
    assert leases.open_jobs == 0


def test_other_errors_close_the_job_at_once() -> None:
    leases = policy()
    given_to(leases)
    event = leases.raised("w", FINAL)
    assert isinstance(event, Failed)
    assert (event.kind, event.attempt) == ("error", 1)


def test_a_job_that_costs_workers_is_quarantined() -> None:
    leases = policy(attempts=5, quarantine_after=2)
    given_to(leases)
    assert isinstance(leases.lost("w", "died"), Retried)
    given_to(leases)
    event = leases.lost("w", "hung")
    assert isinstance(event, Failed)
    assert (event.kind, event.attempt) == ("quarantined", 2)
    assert "2 workers" in event.reason
    assert leases.quarantined == 1


def test_lost_workers_count_as_attempts_where_quarantine_comes_later() -> None:
    leases = policy(attempts=2, quarantine_after=9)
    given_to(leases)
    leases.lost("w", "died")
    given_to(leases)
    event = leases.lost("w", "died")
    assert isinstance(event, Failed)
    assert event.kind == "error"


def test_preemption_costs_no_attempt() -> None:
    leases = policy(attempts=1, quarantine_after=1)
    for attempt in range(1, 6):
        assert given_to(leases).attempt == attempt
        assert isinstance(leases.lost("w", "the node went away", preempted=True), Retried)
    given_to(leases)
    assert isinstance(leases.complete("w", SCORED, 1.0), Completed)


def test_a_released_job_is_the_next_one_and_as_fresh_as_before() -> None:
    leases = policy(2)
    given_to(leases)
    leases.release("w")
    lease = given_to(leases)
    assert (lease.job.key, lease.attempt) == ("0/search", 1)


def test_misuse_is_refused() -> None:
    leases = policy(2)
    with pytest.raises(StateError, match="open already"):
        leases.submit(jobs([0])[0])
    given_to(leases)
    with pytest.raises(StateError, match="one job at a time"):
        leases.give("w", 0.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["done", "retry", "final", "lost", "gone"])), max_size=80))
def test_every_job_is_closed_at_most_once_and_none_is_forgotten(steps: list[tuple[int, str]]) -> None:
    """Whatever happens in whatever order, each job is open, or closed by exactly one event."""
    leases = policy(6, attempts=3, quarantine_after=2)
    events: list[Event] = []
    attempts: Counter[str] = Counter()
    now = 0.0
    for index, what in steps:
        worker, now = f"w{index}", now + 1
        if worker not in {lease.worker for lease in leases.overdue(float("inf"))}:
            lease = leases.give(worker, now)
            if lease is None:
                continue
            attempts[lease.job.key] += 1
            assert lease.attempt == attempts[lease.job.key]
        match what:
            case "done":
                events.append(leases.complete(worker, SCORED, 0.0))
            case "retry" | "final":
                events.append(leases.raised(worker, RETRYABLE if what == "retry" else FINAL))
            case _:
                events.append(leases.lost(worker, what, preempted=what == "gone"))
        closed = Counter(event.job.key for event in events if not isinstance(event, Retried))
        assert max(closed.values(), default=0) <= 1
        assert leases.open_jobs == 6 - len(closed) == leases.running + leases.waiting
    counted = Counter(event.job.key for event in events if not (isinstance(event, Retried) and event.reason == "gone"))
    assert max(counted.values(), default=0) <= 3


class PluginError(NotBuiltError):
    """An error of a plug-in's own."""


@pytest.mark.parametrize(
    ("error", "kind", "retryable", "lost"),
    [
        (EvaluationError("a"), EvaluationError, True, False),
        (WorkerLostError("a"), WorkerLostError, True, True),
        (ConfigError("a"), ConfigError, False, False),
        (PluginError("a"), NotBuiltError, False, False),
        (KeyError("a"), EvaluationError, False, False),
    ],
)
def test_an_exception_crosses_processes_as_data(
    error: Exception, kind: type[Exception], retryable: bool, lost: bool
) -> None:
    """The nearest class of our own is kept, and with it what the error means."""
    fault = Fault.of(error)
    assert (fault.retryable, fault.worker_lost) == (retryable, lost)
    assert type(fault.exception()) is kind


def test_a_reason_is_one_short_line_that_names_the_place() -> None:
    with pytest.raises(ValueError, match="first") as caught:
        raise ValueError("\n\nfirst\nsecond " + "x" * 1000)
    assert Fault.of(caught.value).reason.startswith("ValueError: first (test_leases.py:")
    assert Fault.of(ValueError()).reason == "ValueError"
    assert len(Fault.of(ConfigError("x" * 1000)).reason) == 400
