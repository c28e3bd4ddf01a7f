"""When a search ends: evaluations, hours, GPU-hours, a target, or a space that has nothing new."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster import Event as ExecutorEvent
from evomerge.cluster import InlineExecutor
from evomerge.documents import Document
from evomerge.errors import ConfigError
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run import coordinator, session
from evomerge.run.budget import Meter, spending
from evomerge.run.commands import Drain, Inbox, send
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.conftest import CONFIG
from tests.run.small import AnalyticScorer, analytic_executor, small_search, write_problem
from tests.run.test_resume import killed_session, story


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Spent:
    num_done: int = 0
    num_stagnant: int = 0
    best: float | None = None


def search(executor: dict[str, Any] | None = None, **budget: Any) -> RunConfig:
    import yaml

    data = {**yaml.safe_load(CONFIG), "budget": budget, "executor": executor or {"kind": "inline"}}
    return Document(data=data, name="search.yaml", lines={}).parse(RunConfig)


class TestMeter:
    """The measuring itself, on a clock of our own."""

    def test_evaluations(self) -> None:
        meter = Meter(search(evaluations=3), clock=Clock())
        assert [meter.evaluations_left(Spent(done)) for done in range(5)] == [3, 2, 1, 0, 0]
        assert meter.spent(Spent(2)) is None
        assert meter.spent(Spent(3)) == "3 evaluations are done"

    def test_hours_count_those_of_earlier_coordinators(self) -> None:
        clock = Clock()
        meter = Meter(search(evaluations=None, hours=1.5), elapsed_s=3600.0, clock=clock)
        assert meter.elapsed_s() == 3600.0
        clock.seconds += 1799.0
        assert meter.spent(Spent()) is None
        clock.seconds += 1.0
        assert meter.elapsed_s() == 5400.0
        assert meter.spent(Spent()) == "1.5 hours are over"

    def test_gpu_hours_count_every_gpu_of_every_worker(self) -> None:
        clock = Clock()
        executor = {"kind": "ray", "workers": 4, "gpus_per_worker": 2}
        meter = Meter(search(executor, evaluations=None, gpu_hours=8), clock=clock)
        clock.seconds += 3599.0
        assert meter.spent(Spent()) is None
        clock.seconds += 1.0
        assert meter.spent(Spent()) == "8 GPU-hours are spent"

    def test_the_inline_executor_is_one_worker(self) -> None:
        clock = Clock()
        executor = {"kind": "inline", "workers": 4, "gpus_per_worker": 1}
        meter = Meter(search(executor, evaluations=None, gpu_hours=1), clock=clock)
        clock.seconds += 3599.0
        assert meter.spent(Spent()) is None

    def test_gpu_hours_are_what_workers_really_held_and_go_on_from_earlier_sessions(self) -> None:
        clock = Clock()
        executor = {"kind": "ray", "workers": 4, "gpus_per_worker": 2}
        meter = Meter(search(executor, evaluations=None, gpu_hours=8), gpu_s=7 * 3600.0, clock=clock)
        clock.seconds += 1e6
        meter.hear({"gpu_seconds": 3599.0})
        assert meter.gpu_s() == 8 * 3600.0 - 1
        assert meter.spent(Spent()) is None
        meter.hear({"gpu_seconds": 3600.0})
        assert meter.spent(Spent()) == "8 GPU-hours are spent"

    def test_a_cost_is_gpu_hours_at_their_price(self) -> None:
        executor = {"kind": "ray", "gpus_per_worker": 1}
        meter = Meter(search(executor, evaluations=None, cost=10, cost_per_gpu_hour=2.5), clock=Clock())
        meter.hear({"gpu_seconds": 4 * 3600.0 - 1})
        assert meter.spent(Spent()) is None
        meter.hear({"gpu_seconds": 4 * 3600.0})
        assert meter.spent(Spent()) == "the cost of 10 is reached"

    def test_a_plateau_is_so_many_evaluations_without_growth(self) -> None:
        meter = Meter(search(evaluations=None, plateau=5), clock=Clock())
        assert meter.spent(Spent(100, 4)) is None
        assert meter.spent(Spent(100, 5)) == "a plateau: 5 evaluations brought nothing better"

    def test_a_target_is_reached_by_the_best(self) -> None:
        meter = Meter(search(target=0.5), clock=Clock())
        assert [meter.spent(Spent(best=best)) for best in (None, 0.49)] == [None, None]
        assert meter.spent(Spent(best=0.5)) == "the target 0.5 was reached"

    def test_spending_is_told_in_the_units_of_the_budget(self) -> None:
        budget = search({"kind": "ray", "gpus_per_worker": 1}, cost_per_gpu_hour=2).budget
        assert spending(budget, evaluations=7, elapsed_s=1800.0, gpu_s=5400.0) == {
            "evaluations": 7, "hours": 0.5, "gpu_hours": 1.5, "cost": 3.0,
        }  # fmt: skip
        assert spending(search().budget, evaluations=0, elapsed_s=0.0, gpu_s=0.0)["cost"] is None

    def test_a_cost_needs_a_price(self) -> None:
        with pytest.raises(ConfigError, match=r"set budget\.cost_per_gpu_hour too"):
            search({"kind": "ray", "gpus_per_worker": 1}, cost=3)

    def test_no_limit_is_never_reached(self) -> None:
        clock = Clock()
        meter = Meter(search(evaluations=None), clock=clock)
        clock.seconds += 1e9
        assert meter.spent(Spent(10**9)) is None
        assert meter.evaluations_left(Spent(10**9)) > 10**9

    def test_gpu_hours_need_workers_with_gpus(self) -> None:
        with pytest.raises(ConfigError, match="never ends this search"):
            search(gpu_hours=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


def ending(config: RunConfig, path: Path) -> str:
    assert start(config, path, executor=analytic_executor).ending == "finished"
    return load_run(path).state.reason


def test_a_search_ends_with_its_hours(folder: Path, tmp_path: Path) -> None:
    config = small_search(folder, evaluations=1, budget={"evaluations": None, "hours": 0.3 / 3600})
    assert "hours are over" in ending(config, tmp_path / "run")
    assert load_run(tmp_path / "run").elapsed_s() >= 0.3


def test_a_search_ends_with_its_gpu_hours(folder: Path, tmp_path: Path) -> None:
    budget = {"evaluations": None, "gpu_hours": 0.6 / 3600}
    config = small_search(folder, evaluations=1, budget=budget, executor={"kind": "inline", "gpus_per_worker": 2})
    assert "GPU-hours are spent" in ending(config, tmp_path / "run")
    assert load_run(tmp_path / "run").elapsed_s() >= 0.3


def test_a_search_ends_at_its_target(folder: Path, tmp_path: Path) -> None:
    assert ending(small_search(folder, evaluations=20), tmp_path / "whole") == "20 evaluations are done"
    run = load_run(tmp_path / "whole")
    target = run.value(run.archive().best() or 0, "search")
    budget = {"evaluations": 20, "target": target}
    assert (
        ending(small_search(folder, evaluations=20, budget=budget), tmp_path / "run")
        == f"the target {target:g} was reached"
    )
    short = load_run(tmp_path / "run")
    values = [short.value(number, "search") for number in short.state.asked]
    assert [value for value in values if value is not None and value >= (target or 0)] == values[-1:]


def test_a_budget_may_be_changed_and_changed_again(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert ending(small_search(folder, evaluations=4), path) == "4 evaluations are done"
    resume(path, ["budget.evaluations=null", "budget.hours=0.00001"], executor=analytic_executor)
    assert "hours are over" in load_run(path).state.reason
    resume(path, ["budget.evaluations=8", "budget.hours=null"], executor=analytic_executor)
    assert load_run(path).state.num_done == 8
    assert load_run(path).budget.model_dump(exclude_none=True) == {"evaluations": 8}


def test_a_search_ends_on_a_plateau_of_best_and_hypervolume(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    reason = ending(small_search(folder, evaluations=1, budget={"evaluations": 200, "plateau": 6}), path)
    assert reason == "a plateau: 6 evaluations brought nothing better"
    run = load_run(path)
    course = run.history()
    assert run.state.num_stagnant == 6
    last = course.hypervolume[-1]
    grown = [
        place
        for place in range(len(course.best))
        if (course.hypervolume[place], course.best[place]) != (last, course.best[-1])
    ]
    assert len(course.best) - 1 - (grown[-1] + 1) == 6
    resume(path, ["budget.plateau=null", f"budget.evaluations={run.state.num_done + 3}"], executor=analytic_executor)
    assert load_run(path).state.num_done == run.state.num_done + 3


class _Holding(InlineExecutor):
    """Scores in this process, and says that its workers have held GPUs for 100 seconds with every result."""

    held = 0.0

    def wait(self, timeout_s: float) -> list[ExecutorEvent]:
        events = super().wait(timeout_s)
        self.held += 100.0 * len(events)
        return events

    def status(self) -> dict[str, float | int | str]:
        return {**super().status(), "gpu_seconds": self.held}


def test_gpus_are_accounted_for_over_sessions_and_end_the_search(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "LOOK_S", 0.0)
    path = tmp_path / "run"
    limits = {"evaluations": None, "cost": 3.0, "cost_per_gpu_hour": 6.0}  # 1,800 GPU-seconds
    config = small_search(
        folder, evaluations=1, budget=limits, executor={"kind": "ray", "gpus_per_worker": 2}, finalists=0
    )

    def executor(problem: Problem) -> InlineExecutor:
        return _Holding(problem.config.executor, lambda: AnalyticScorer(problem))

    sender = iter([None] * 7 + [Drain(command="pause")])

    def leaves(problem: Problem) -> InlineExecutor:
        class Scorer(AnalyticScorer):
            def score(self, recipe: Recipe, split: Split) -> Evaluation:
                command = next(sender, None)
                if command is not None:
                    send(path, command)
                return super().score(recipe, split)

        return _Holding(problem.config.executor, lambda: Scorer(problem))

    monkeypatch.setattr(session, "Inbox", partial(Inbox, every_s=0.0))
    assert start(config, path, executor=leaves).ending == "paused"
    held = load_run(path).state.gpu_s
    assert 700 <= held <= 1000
    assert resume(path, executor=executor).ending == "finished"
    run = load_run(path)
    assert run.state.reason == "the cost of 3 is reached"
    assert run.state.gpu_s >= 1800.0
    spent = run.status()["spent"]
    assert spent["cost"] == round(run.state.gpu_s / 3600 * 6, 6)
    assert spent["evaluations"] == run.state.num_done
    (one,) = [e for e in run.show(0)["evaluations"] if e["split"] == "search"]
    assert one["gpus"] == 2.0
    assert one["gpu_seconds"] == pytest.approx(2 * sum(one["seconds"].values()), abs=1e-3)
    marks = [event.gpu_s for event in read_journal(path / "journal.jsonl") if isinstance(event, Evaluated)]
    assert marks == sorted(marks)


TINY_SPACE = {
    "method": "ties",
    "parameters": {"weight": 0.7, "density": 0.5, "scale": 1.0, "normalize": [True, False], "scope": "tensor"},
}


@pytest.fixture
def tiny(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A search with two recipes in all, and little patience."""
    monkeypatch.setattr(coordinator, "MAX_REPEATS", 8)
    search = {"searcher": "random", "seed": 0}
    return small_search(folder, evaluations=5, space=TINY_SPACE, search=search)


def test_a_space_that_is_exhausted_ends_the_search_and_repeats_cost_nothing(tiny: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert ending(tiny, path) == "the last 8 proposals had all been scored before"
    run = load_run(path)
    assert run.status()["evaluations"]["done"] == 2
    events = read_journal(path / "journal.jsonl")
    first: dict[str, Evaluated] = {}
    for event in events:
        if isinstance(event, Evaluated) and event.split == "search" and isinstance(event.candidate, int):
            original = first.setdefault(event.recipe_id, event)
            if event is not original:
                assert event.reused_from == original.candidate
                assert (event.state, event.objectives, event.stderr, event.scores) == (
                    original.state, original.objectives, original.stderr, original.scores,
                )  # fmt: skip
    assert len(first) == 2
    assert len([event for event in events if isinstance(event, Asked)]) >= 10
    assert len(run.archive().entries) == 2
    assert verify(path).open == 0


def test_killed_while_it_repeats_itself_a_search_ends_at_the_same_proposal(tiny: RunConfig, tmp_path: Path) -> None:
    ending(tiny, tmp_path / "whole")
    events = len(read_journal(tmp_path / "whole" / "journal.jsonl"))
    for after in range(events - 12, events, 3):
        path = tmp_path / f"killed-{after}"
        assert killed_session(path, tiny, after, torn=False) == -9
        resume(path, executor=analytic_executor)
        assert story(path) == story(tmp_path / "whole"), f"killed after {after} events"
