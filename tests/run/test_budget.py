"""When a search ends: evaluations, hours, GPU-hours, a target, or a space that has nothing new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evomerge.documents import Document
from evomerge.errors import ConfigError
from evomerge.run import coordinator
from evomerge.run.budget import Meter
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.run.conftest import CONFIG
from tests.run.small import analytic_executor, small_search, write_problem
from tests.run.test_resume import killed_session, story


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Spent:
    num_done: int = 0


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
    assert load_run(path).budget.model_dump() == {"evaluations": 8, "hours": None, "gpu_hours": None, "target": None}


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
