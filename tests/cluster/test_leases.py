"""The policy of leases, retries and quarantine."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.cluster._limits import Limits
from evomerge.cluster.faults import Fault
from evomerge.cluster.leases import MACHINES, Lease, Leases
from evomerge.cluster.types import Completed, Event, Failed, Retried
from evomerge.errors import ConfigError, EvaluationError, NotBuiltError, StateError, WorkerLostError
from evomerge.fitness.types import Evaluation, Minibatch
from evomerge.testing.executors import jobs

RETRYABLE = Fault.of(EvaluationError("try again"))
FINAL = Fault.of(ValueError("no use"))
SCORED = Evaluation("search")


def policy(
    num_jobs: int = 1,
    *,
    attempts: int = 3,
    quarantine_after: int = 2,
    timeout_s: float = 10.0,
    timeout_factor: float | None = None,
) -> Leases:
    leases = Leases(
        attempts=attempts, quarantine_after=quarantine_after, timeout_s=timeout_s, timeout_factor=timeout_factor
    )
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


def test_the_loss_of_machines_costs_no_attempt_until_they_are_too_many() -> None:
    """Three may go at once, with workers that had only just been given the job."""
    leases = policy(attempts=2, quarantine_after=1)
    for _ in range(MACHINES - 1):
        given_to(leases)
        assert isinstance(leases.lost("w", "died with its node", blameless=True), Retried)
    given_to(leases)
    event = leases.lost("w", "died with its node", blameless=True)
    assert isinstance(event, Failed)
    assert (event.kind, leases.quarantined) == ("error", 0)
    assert "the loss of 10 machines" in event.reason


def test_a_late_answer_closes_a_job_that_waits_for_another_worker() -> None:
    leases = policy(2)
    given_to(leases, "slow")
    leases.lost("slow", "gave no answer", may_answer=True)
    assert leases.expects("slow")
    event = leases.complete("slow", SCORED, 11.0)
    assert isinstance(event, Completed)
    assert (event.job.key, event.attempt, event.worker) == ("0/search", 1, "slow")
    assert given_to(leases, "w").job.key == "1/search"
    assert leases.give("slow", 0.0) is None
    assert leases.open_jobs == 1


def test_the_first_of_two_answers_closes_the_job_and_the_other_is_dropped() -> None:
    for late_first in (True, False):
        leases = policy()
        given_to(leases, "slow")
        leases.lost("slow", "gave no answer", may_answer=True)
        assert given_to(leases, "w").attempt == 2
        first, second = ("slow", "w") if late_first else ("w", "slow")
        event = leases.complete(first, SCORED, 1.0)
        assert isinstance(event, Completed)
        assert event.attempt == (1 if late_first else 2)
        assert not leases.expects("slow")
        assert leases.complete(second, SCORED, 1.0) is None
        assert (leases.open_jobs, leases.running, leases.waiting) == (0, 0, 0)


@pytest.mark.parametrize("end", ["lost", "raised"])
def test_what_happens_to_the_second_worker_of_a_closed_job_is_no_event(end: str) -> None:
    """It may die, hang or raise: the job has its answer."""
    leases = policy()
    given_to(leases, "slow")
    leases.lost("slow", "gave no answer", may_answer=True)
    given_to(leases, "w", 100.0)
    leases.complete("slow", SCORED, 1.0)
    assert [lease.worker for lease in leases.overdue(110.0)] == ["w"]  # it is still ended when it hangs
    assert (leases.lost("w", "died") if end == "lost" else leases.raised("w", FINAL)) is None
    assert leases.overdue(1000.0) == ()


def test_a_late_error_changes_nothing() -> None:
    leases = policy()
    given_to(leases, "slow")
    leases.lost("slow", "gave no answer", may_answer=True)
    assert leases.raised("slow", FINAL) is None
    assert leases.open_jobs == leases.waiting == 1


def test_no_late_answer_is_awaited_of_a_job_that_is_closed_or_a_worker_that_is_given_up() -> None:
    leases = policy(2, quarantine_after=1)
    given_to(leases, "a")
    assert isinstance(leases.lost("a", "gave no answer", may_answer=True), Failed)
    assert not leases.expects("a")
    given_to(leases, "b")
    leases.lost("b", "was out of reach", preempted=True, may_answer=True)
    assert leases.expects("b")
    leases.forget("b")
    assert not leases.expects("b")


def test_a_late_answer_to_a_job_of_the_same_name_is_none_to_this_one() -> None:
    leases = policy()
    given_to(leases, "slow")
    leases.lost("slow", "gave no answer", may_answer=True)
    given_to(leases, "w")
    leases.complete("w", SCORED, 1.0)
    leases.submit(jobs([0])[0])
    assert leases.complete("slow", SCORED, 1.0) is None
    assert leases.open_jobs == leases.waiting == 1


def test_time_limits_are_learned_from_successes() -> None:
    """100 s at first; after eight successes of at most 8 s, ten times 8 s; never below a minute or above 100 s."""
    leases = policy(30, timeout_s=100, timeout_factor=10)
    for seconds in (3, 1, 4, 1, 5, 8, 2):
        assert given_to(leases, now_s=7.0).deadline_s == 107.0
        leases.complete("w", SCORED, seconds)
    assert given_to(leases).limit_s == 100.0
    leases.complete("w", SCORED, 6.0)
    assert given_to(leases, now_s=7.0).deadline_s == 87.0
    leases.complete("w", SCORED, 9.5)
    assert given_to(leases).limit_s == 95.0
    leases.complete("w", SCORED, 50.0)
    assert given_to(leases).limit_s == 100.0


def test_no_time_limit_below_a_minute_is_learned_and_none_from_other_kinds_of_jobs() -> None:
    limits = Limits(3600, 10)
    (search,), (validation,) = jobs([0]), jobs([0], "validation")
    small = dataclasses.replace(search, minibatch=Minibatch(documents=8, draw=1))
    for _ in range(8):
        limits.learn(small, 0.5)
        limits.learn(search, 20.0)
    assert [limits.limit_s(job) for job in (small, search, validation)] == [60.0, 200.0, 3600.0]


def test_a_factor_of_none_keeps_the_time_limit() -> None:
    leases = policy(20, timeout_s=1000, timeout_factor=None)
    for _ in range(20):
        assert given_to(leases).limit_s == 1000.0
        leases.complete("w", SCORED, 1.0)


STEPS = ["done", "retry", "final", "lost", "gone", "silent"]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), max_size=80))
def test_every_job_is_closed_at_most_once_and_none_is_forgotten(steps: list[tuple[int, str]]) -> None:
    """Whatever happens in whatever order, each job is open, or closed by exactly one event; late answers too."""
    leases = policy(6, attempts=3, quarantine_after=2)
    events: list[Event] = []
    attempts: Counter[str] = Counter()
    late: set[str] = set()
    now = 0.0
    for index, what in steps:
        worker, now = f"w{index}", now + 1
        if leases.held_by(worker) is None and worker not in late:
            lease = leases.give(worker, now)
            if lease is None:
                continue
            attempts[lease.job.key] += 1
            assert lease.attempt == attempts[lease.job.key]
        event: Event | None
        match what:
            case "done":
                event = leases.complete(worker, SCORED, 0.0)
            case "retry" | "final":
                event = leases.raised(worker, RETRYABLE if what == "retry" else FINAL)
            case "silent" if worker not in late:
                event = leases.lost(worker, what, may_answer=True)
            case _ if worker in late:
                leases.forget(worker)
                event = None
            case _:
                event = leases.lost(worker, what, preempted=what == "gone")
        late = {name for name in ("w0", "w1", "w2") if leases.expects(name)}
        for name in {"w0", "w1", "w2"} - late:
            leases.forget(name)
        events += [] if event is None else [event]
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
        (MemoryError(), WorkerLostError, True, True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), WorkerLostError, True, True),
        (ConfigError("the engine's memory: out of memory"), ConfigError, False, False),
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
