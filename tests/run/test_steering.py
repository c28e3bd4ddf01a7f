"""Commands to a running search: each takes effect where it is journaled, and replays from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cluster import InlineExecutor
from evomerge.errors import StateError, StorageError
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run.commands import ChangeBudget, Drain, Hold, Inject, SetWorkers
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Budget, Event, Finished, Held, Paused, Resumed, Stopped, Workers
from evomerge.run.journal import JournalWriter, read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.stopping import stop_idle
from evomerge.run.view import load_run
from tests.run.small import DOCUMENTS, OBJECTIVES, AnalyticScorer, analytic_executor, small_search, write_problem
from tests.run.steered import Order, Shell, attentive, cut, done, put, refused, steer, steered_executor
from tests.run.test_resume import story

__all__ = ["attentive"]

pytestmark = pytest.mark.usefixtures("attentive")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return small_search(folder, evaluations=10)


def lines(path: Path, kind: type[Event]) -> list[Any]:
    return [event for event in read_journal(path / "journal.jsonl") if isinstance(event, kind)]


def weights(path: Path, source: str) -> list[set[float]]:
    """Return the weights of a source in each candidate, in the order of asking."""
    run = load_run(path)
    places = [i for i, dimension in enumerate(run.space.dimensions) if dimension.name.startswith(f"weight/{source}/")]
    return [{asked.genome[place] for place in places} for asked in run.state.asked.values()]


def injection(weight: float) -> Callable[[Problem], Inject]:
    """Return the injection of the recipe in which every weight is this."""

    def command(problem: Problem) -> Inject:
        genome = tuple(weight if d.name.startswith("weight/") else v for d, v in _start(problem))
        return Inject(recipe=problem.space.decode(genome).to_mapping())

    return command


def _start(problem: Problem) -> list[tuple[Any, Any]]:
    return list(zip(problem.space.dimensions, problem.space.start, strict=True))


class TestLeaving:
    """Pause and stop drain the run and are answered once that is journaled."""

    def test_a_pause_ends_the_session_and_a_resume_makes_the_run_equal_to_the_undisturbed(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
        result, (answer,) = steer(config, path, {7: [Drain(command="pause")]})
        assert result.ending == "paused"
        facts = done(answer).facts
        assert facts["state"] == "paused"
        assert facts["evaluations"] == load_run(path).state.num_done < 10
        (paused,) = lines(path, Paused)
        assert paused.reason == "pause command"
        assert paused.command
        assert load_run(path).condition() == "paused"
        start(config, undisturbed, executor=analytic_executor)
        resume(path, executor=analytic_executor)
        assert story(path) == story(undisturbed)
        assert list((path / "commands").iterdir()) == []

    def test_a_stop_ends_the_run_and_only_a_resume_that_is_asked_for_continues_it(
        self, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "run"
        result, (answer,) = steer(config, path, {7: [Drain(command="stop")]})
        assert result.ending == "stopped"
        assert done(answer).facts["state"] == "stopped"
        assert load_run(path).condition() == "stopped"
        with pytest.raises(StateError, match="this run was stopped; continue it with `evomerge resume"):
            resume(path, config=config, executor=analytic_executor)
        assert load_run(path).condition() == "stopped"
        assert resume(path, executor=analytic_executor).ending == "finished"
        assert "was stopped; it goes on now, as you ask" in caplog.text
        assert load_run(path).state.num_done == 10

    def test_a_stop_overrides_a_pause_and_both_are_answered(self, config: RunConfig, tmp_path: Path) -> None:
        script = {7: [Drain(command="pause"), Drain(command="stop"), Drain(command="pause")]}
        result, answers = steer(config, tmp_path / "run", script)
        assert result.ending == "stopped"
        assert [done(answer).facts["state"] for answer in answers] == ["stopped"] * 3

    def test_a_pause_that_was_asked_of_an_earlier_session_does_not_pause_the_next(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        steer(config, path, {7: [Drain(command="pause")]})
        put(path, f"{1:020d}-00000001", {"command": "pause"})
        put(path, f"{2:020d}-00000002", {"command": "budget", "changes": {"evaluations": 8}})
        assert resume(path, executor=analytic_executor).ending == "finished"
        assert load_run(path).state.num_done == 8
        assert len(lines(path, Budget)) == 1

    def test_one_that_comes_while_the_session_still_opens_its_sources_counts(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        steer(config, path, {7: [Drain(command="pause")]})
        done_before = load_run(path).state.num_done
        put(path, f"{time.time_ns() + 10**12:020d}-00000001", {"command": "pause"})
        assert resume(path, executor=analytic_executor).ending == "paused"
        assert load_run(path).state.num_done == done_before

    def test_an_idle_run_is_stopped_by_who_asks(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        steer(config, path, {7: [Drain(command="pause")]})
        before = load_run(path).state.elapsed_s
        assert stop_idle(path).done
        assert load_run(path).condition() == "stopped"
        assert load_run(path).state.elapsed_s == before
        resume(path, executor=analytic_executor)
        with pytest.raises(StateError, match="finished, so there is nothing to stop"):
            stop_idle(path)

    def test_what_comes_during_a_drain_is_answered_all_the_same(self, config: RunConfig, tmp_path: Path) -> None:
        script = {7: [Drain(command="pause"), injection(0.25), ChangeBudget(changes={"evaluations": 9})]}
        path = tmp_path / "run"
        _, (_, injected, budget) = steer(config, path, script)
        refused(injected, "drained", "resume it")
        assert done(budget).facts["budget"]["evaluations"] == 9
        resume(path, executor=analytic_executor)
        assert load_run(path).state.num_done == 9


class TestBudget:
    """The limits of a live run."""

    def test_more_evaluations_are_a_longer_run_of_the_same_search(
        self, folder: Path, config: RunConfig, tmp_path: Path
    ) -> None:
        path, longer = tmp_path / "run", tmp_path / "longer"
        _, (answer,) = steer(config, path, {7: [ChangeBudget(changes={"evaluations": 14, "hours": 3})]})
        assert done(answer).facts["budget"] == {**config.budget.model_dump(), "evaluations": 14, "hours": 3.0}
        start(small_search(folder, evaluations=14), longer, executor=analytic_executor)
        assert story(path) == story(longer)
        assert load_run(path).budget.evaluations == 14
        (budget,) = lines(path, Budget)
        assert budget.changes == {"evaluations": 14, "hours": 3.0}

    def test_a_limit_that_is_passed_already_ends_the_run(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        result, (answer,) = steer(config, path, {9: [ChangeBudget(changes={"evaluations": 2})]})
        assert result.ending == "finished"
        assert "2 evaluations are done, so the run ends" in done(answer).text
        assert load_run(path).state.num_done < 10

    def test_a_resumed_run_keeps_it(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        steer(config, path, {5: [ChangeBudget(changes={"evaluations": 12})], 8: [Drain(command="pause")]})
        assert resume(path, executor=analytic_executor).ending == "finished"
        assert load_run(path).state.num_done == 12

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"evaluation": 5}, ("evaluation", "evaluations")),
            ({"evaluations": 0}, ("budget.evaluations",)),
            ({"hours": "soon"}, ("budget.hours",)),
            ({"gpu_hours": 4}, ("budget.gpu_hours never ends",)),
            ({"cost": 4}, ("budget.cost never ends",)),
        ],
    )
    def test_what_no_search_file_may_say_is_refused(
        self, config: RunConfig, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
    ) -> None:
        path = tmp_path / "run"
        _, (answer,) = steer(config, path, {7: [ChangeBudget(changes=changes)]})
        refused(answer, *words)
        assert lines(path, Budget) == []
        assert load_run(path).state.num_done == 10


class TestWorkers:
    """Adding and removing workers."""

    def test_an_executor_that_cannot_have_so_many_says_so(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        _, (three, one) = steer(config, path, {7: [SetWorkers(workers=3), SetWorkers(workers=1)]})
        refused(three, "1 worker", "3")
        assert done(one).facts == {"workers": 1}
        assert [event.workers for event in lines(path, Workers)] == [1]
        assert load_run(path).state.workers == 1

    def test_one_that_can_has_them_from_then_on(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        wanted: list[int] = []

        class Elastic(InlineExecutor):
            def resize(self, workers: int) -> None:
                wanted.append(workers)

        shell = Shell(path, {7: [SetWorkers(workers=3)]})

        def executor(problem: Problem) -> InlineExecutor:
            return steered_executor(shell, problem, Elastic)

        start(config, path, executor=executor)
        done(shell.answers()[0])
        assert wanted == [3]
        assert load_run(path).state.workers == 3
        assert verify(path).open == 0

    def test_a_resumed_run_has_as_many_as_were_wanted_last(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        seen: list[int] = []

        def executor(problem: Problem) -> Any:
            seen.append(problem.config.executor.workers)
            return analytic_executor(problem)

        steer(config, path, {7: [Drain(command="pause")]})
        for overrides in (["executor.workers=5", "budget.evaluations=11"], ["budget.evaluations=12"]):
            resume(path, overrides, executor=executor)
        assert seen == [5, 5]
        assert verify(path).open == 0


class TestInjection:
    """Recipes that people give."""

    def test_it_is_an_ordinary_candidate_with_the_next_number(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        _, (answer,) = steer(config, path, {7: [injection(0.25)]})
        facts = done(answer).facts
        run = load_run(path)
        (asked,) = [event for event in run.state.asked.values() if event.injected]
        assert (facts["candidate"], facts["recipe_id"]) == (asked.candidate, asked.recipe_id)
        assert asked.origin == "injected"
        assert asked.command
        assert run.state.num_done == 10  # it counts
        assert run.recipe_id(asked.candidate) == run.state.evaluations[asked.candidate, "search"].recipe_id
        assert verify(path).open == 0

    def test_one_that_was_scored_before_costs_nothing(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        _, answers = steer(config, path, {5: [injection(0.25)], 9: [injection(0.25)]})
        first, second = (done(answer) for answer in answers)
        assert f"has the recipe of {first.facts['candidate']}, which has been scored" in second.text
        assert load_run(path).state.num_done == 10
        assert verify(path).open == 0

    @pytest.mark.parametrize("searcher", ["cma_es", "cat_cma"])
    def test_one_that_is_best_wins_though_the_searcher_does_not_look_at_it(
        self, folder: Path, tmp_path: Path, searcher: str
    ) -> None:
        """It is scored once a split and leads in each; what the searcher asks is what it asks without."""
        search = {"searcher": searcher, "seed": 0, "options": {"population": 4}}
        config = small_search(folder, evaluations=12, search=search)
        path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
        shell = Shell(path, {7: [injection(0.25)]})
        splits: list[Split] = []

        def executor(problem: Problem, shell: Shell) -> InlineExecutor:
            given = Recipe.from_mapping(injection(0.25)(problem).recipe)

            class Scorer(AnalyticScorer):
                calls = 0

                def score(self, recipe: Recipe, split: Split) -> Evaluation:
                    self.calls += 1
                    shell.at(self.calls, problem)
                    known = super().score(recipe, split)
                    if recipe != given:  # whatever it is, its first answer is wrong
                        flaw = np.arange(DOCUMENTS) > 0
                        return replace(known, samples={name: found * flaw for name, found in known.samples.items()})
                    splits.append(split)
                    documents = {task: tuple(f"{split}{n}" for n in range(DOCUMENTS)) for task in ("letters", "digits")}
                    return Evaluation(split, {name: np.ones(DOCUMENTS) for name in OBJECTIVES}, documents)

            return InlineExecutor(problem.config.executor, lambda: Scorer(problem))

        start(config, path, executor=partial(executor, shell=shell))
        start(config, undisturbed, executor=partial(executor, shell=Shell(undisturbed, {})))
        run = load_run(path)
        winner = done(shell.answers()[0]).facts["candidate"]
        assert splits == ["search", "validation"]
        assert run.best() == winner
        assert run.archive("search").front() == run.archive("validation").front() == (winner,)
        assert run.state.num_done == 12
        asked = [event.genome for event in run.state.asked.values() if event.candidate != winner]
        assert asked == [event.genome for event in load_run(undisturbed).state.asked.values()][: len(asked)]
        assert verify(path).open == 0

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda m: m["layers"][1]["blend"]["weight"].update(math=9.0), ("layers[1].blend.weight.math",)),
            (lambda m: m["layers"][0]["blend"]["weight"].update(digits=9.0), ("digits", "number in [")),
            (lambda m: m["sources"]["digits"].update(model="org/other"), ("sources.digits.model",)),
            (lambda m: m["sources"].pop("digits"), ("digits",)),
            (lambda m: m["layers"].pop(), ("layers",)),
            (lambda m: m.update(blend={"method": "linear"}), ("blend",)),
            (lambda m: m.update(nonsense=1), ("nonsense",)),
            (lambda m: m.clear(), ("recipe: this key is required",)),
        ],
    )
    def test_one_that_does_not_fit_is_refused_by_its_key(
        self, config: RunConfig, tmp_path: Path, spoil: Any, words: tuple[str, ...]
    ) -> None:
        def command(problem: Problem) -> Inject:
            data = problem.space.decode(problem.space.start).to_mapping()
            spoil(data)
            return Inject(recipe=data)

        path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
        _, (answer,) = steer(config, path, {7: [command]})
        refused(answer, *words)
        start(config, undisturbed, executor=analytic_executor)
        assert story(path) == story(undisturbed)

    def test_none_is_taken_beyond_the_budget_or_once_the_finalists_are_scored(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        start(config, path, executor=analytic_executor)
        scored_on_search = sum(split == "search" for _, split in load_run(path).state.evaluations)
        again = tmp_path / "again"
        _, answers = steer(config, again, {scored_on_search: [injection(0.25)], scored_on_search + 1: [injection(0.5)]})
        refused(answers[0], "raise the budget")
        refused(answers[1], "the search is over")
        assert story(again) == story(path)


class TestHolding:
    """Sources that are pinned, banned and freed."""

    def test_from_then_on_every_candidate_has_that_weight_until_it_is_freed(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "run"
        config = small_search(folder, evaluations=16)
        script = {
            7: [Hold(source="digits", weight=0.0)],
            10: [Hold(source="digits", weight=0.75)],
            13: [Hold(source="letters", weight=0.5), Hold(source="digits", weight=None)],
        }
        _, answers = steer(config, path, script)
        assert "digits is banned" in done(answers[0]).text
        assert done(answers[1]).facts == {"held": {"digits": 0.75}}
        assert done(answers[2]).facts == {"held": {"digits": 0.75, "letters": 0.5}}
        assert "digits is free again" in done(answers[3]).text
        held: dict[str, float | None] = {}
        found = {source: weights(path, source) for source in ("digits", "letters")}
        for event in read_journal(path / "journal.jsonl"):
            if isinstance(event, Held):
                held[event.source] = event.weight
            elif isinstance(event, Asked):
                for source, weight in held.items():
                    assert weight is None or found[source][event.candidate] == {weight}
        assert {0.0} in found["digits"]
        assert found["digits"][0] != {0.0}
        assert len(found["digits"][-1]) > 1
        assert verify(path).open == 0

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            (Hold(source="digit", weight=0.0), ("'digit' is not a source", "did you mean 'digits'")),
            (Hold(source="base", weight=0.0), ("sources.base", "does not vary")),
            (Hold(source="digits", weight=-7.0), ("sources.digits", "number in [")),
            (Hold(source="digits", weight=None), ("is not held",)),
        ],
    )
    def test_what_cannot_be_held_is_refused(
        self, config: RunConfig, tmp_path: Path, command: Hold, words: tuple[str, ...]
    ) -> None:
        path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
        _, (answer,) = steer(config, path, {7: [command]})
        refused(answer, *words)
        start(config, undisturbed, executor=analytic_executor)
        assert story(path) == story(undisturbed)

    def test_a_space_without_weights_cannot_hold_any(self, folder: Path, tmp_path: Path) -> None:
        config = small_search(folder, evaluations=3, space={"kind": "data_flow"})
        _, (answer,) = steer(config, tmp_path / "run", {6: [Hold(source="digits", weight=0.0)]})
        refused(answer, "sources.digits", "does not vary")


SEARCHERS = {
    "cma_es": {"search": {"searcher": "cma_es", "seed": 0, "options": {"population": 4}}},
    "natural_niches": {
        "search": {"searcher": "natural_niches", "seed": 0, "options": {"mutation": 0.01}},
        "space": {"kind": "piecewise", "chunks": 2},
    },
    "portfolio": {
        "search": {
            "searcher": "portfolio",
            "seed": 0,
            "options": {
                "together": True,
                "stages": [{"searcher": "nsga_ii", "options": {"population": 4}}, {"searcher": "tpe"}],
            },
        }
    },
    "stages": {
        "space": {"kind": "joint", "schedule": "alternating", "stage_evaluations": 4},
        "search": {"searcher": "cma_es", "seed": 0, "options": {"population": 4}},
    },
}


def _any_injection(problem: Problem) -> Inject:
    space = problem.space
    genome = tuple(d.from_unit(0.3) if v is not None else None for d, v in _start(problem))
    return Inject(recipe=space.decode(genome).to_mapping())


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_steered_run_replays_and_resumes_from_wherever_it_is_cut_after_the_last_command(
    folder: Path, tmp_path: Path, name: str
) -> None:
    config = small_search(folder, evaluations=18, **SEARCHERS[name])
    path = tmp_path / "run"
    script: dict[int, list[Order]] = {
        5: [_any_injection],
        8: [Hold(source="digits", weight=0.0), ChangeBudget(changes={"evaluations": 16})],
        12: [Hold(source="digits", weight=None), _any_injection],
    }
    _, answers = steer(config, path, script)
    for answer in answers:
        done(answer)
    assert verify(path).candidates > 16
    events = read_journal(path / "journal.jsonl")
    last = max(index for index, event in enumerate(events) if getattr(event, "command", ""))
    for number, count in enumerate((last + 1, (last + len(events)) // 2, len(events) - 1)):
        again = cut(path, tmp_path / f"cut-{number}", count)
        resume(again, executor=analytic_executor)
        assert story(again) == story(path), f"cut after {count} lines"


def test_a_command_that_was_carried_out_before_a_crash_is_not_repeated(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    steer(config, path, {7: [injection(0.25)]})
    events = read_journal(path / "journal.jsonl")
    place = next(i for i, event in enumerate(events) if isinstance(event, Asked) and event.injected)
    again = cut(path, tmp_path / "again", place + 1)
    command = events[place].command  # type: ignore[attr-defined]
    put(again, command, {"command": "inject", "recipe": load_run(path).recipe(events[place].candidate).to_mapping()})  # type: ignore[attr-defined]
    resume(again, executor=analytic_executor)
    assert story(again) == story(path)
    assert (again / "commands" / f"{command}.answer.json").exists()
    assert not (again / "commands" / f"{command}.json").exists()


def test_a_disk_that_refuses_a_commands_line_ends_the_session_and_the_command_is_carried_out_by_the_next(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    append = JournalWriter.append

    def full(self: JournalWriter, event: Any) -> Any:
        if isinstance(event, Held):
            raise StorageError("the disk is full")
        return append(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "append", full)
        with pytest.raises(StorageError, match="the disk is full"):
            steer(config, path, {7: [Hold(source="digits", weight=0.0)]})
    assert lines(path, Held) == []
    resume(path, executor=analytic_executor)
    assert [event.source for event in lines(path, Held)] == ["digits"]
    assert load_run(path).state.num_done == 10
    assert verify(path).open == 0


def test_results_can_be_had_while_the_run_goes_on(config: RunConfig, tmp_path: Path) -> None:
    """`best`, the front and an export work on a run that a coordinator holds."""
    from evomerge.run.export import export_recipe

    path = tmp_path / "run"
    seen: dict[str, Any] = {}

    def look(problem: Problem) -> ChangeBudget:
        run = load_run(path)
        seen["condition"], seen["front"] = run.condition(), run.pareto()
        seen["recipe"] = export_recipe(path, tmp_path / "best.yaml", "best")
        return ChangeBudget(changes={"evaluations": 10})

    steer(config, path, {9: [look]})
    assert seen["condition"] == "running"
    assert seen["front"]
    assert Recipe.from_yaml((tmp_path / "best.yaml").read_text())
    assert lines(path, Finished)
    assert not lines(path, Resumed)
    assert not lines(path, Stopped)
