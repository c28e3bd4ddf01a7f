"""The loop: references, failures, drains, finalists, and the sealed test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster import InlineExecutor
from evomerge.errors import EvaluationError, StateError
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run import coordinator
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated, Finished, Paused, Reference, Retried
from evomerge.run.journal import read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import ExecutorFactory, resume, start
from evomerge.run.view import load_run
from tests.run.small import OBJECTIVES, AnalyticScorer, analytic_executor, small_search, write_problem
from tests.run.test_resume import story

NO_REFERENCES = {"parents": False, "uniform": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def config(folder: Path) -> RunConfig:
    return small_search(folder, evaluations=10, references={"coefficients": 2})


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    start(config, path, executor=analytic_executor)
    return path


def evaluated(path: Path) -> list[Evaluated]:
    return [event for event in read_journal(path / "journal.jsonl") if isinstance(event, Evaluated)]


def failing(fails: Callable[[int, str, Split], bool], error: Exception | None = None) -> ExecutorFactory:
    """Return an executor whose scorer raises where `fails(number of the call, recipe identity, split)` says so."""

    class Scorer(AnalyticScorer):
        def __init__(self, problem: Problem) -> None:
            super().__init__(problem)
            self.calls = 0

        def score(self, recipe: Recipe, split: Split) -> Evaluation:
            self.calls += 1
            if fails(self.calls, self._problem.identity(recipe), split):
                raise error or EvaluationError("the disk of the worker is gone")
            return super().score(recipe, split)

    def factory(problem: Problem) -> InlineExecutor:
        scorer = Scorer(problem)
        return InlineExecutor(problem.config.executor, lambda: scorer)

    return factory


class TestReferences:
    """What candidates are compared with."""

    def test_are_scored_first_and_beside_the_budget(self, undisturbed: Path) -> None:
        names = ["parent:base", "parent:letters", "parent:digits", "uniform", "coefficient:0.10", "coefficient:1.00"]
        events = read_journal(undisturbed / "journal.jsonl")
        assert [event.name for event in events if isinstance(event, Reference)] == names
        search = [event.candidate for event in evaluated(undisturbed) if event.split == "search"]
        assert search[:6] == names
        assert [number for number in search if isinstance(number, int)] == list(range(10))

    def test_a_parent_is_that_source_and_the_average_leaves_the_base_out(self, undisturbed: Path) -> None:
        run = load_run(undisturbed)
        blend = run.recipe("parent:letters").to_mapping()["blend"]
        assert blend == {"method": "linear", "weight": {"letters": 1.0}}
        assert run.recipe("uniform").to_mapping()["blend"]["weight"] == {"letters": 1.0, "digits": 1.0}

    def test_a_candidate_with_the_recipe_of_a_reference_has_its_score(self, folder: Path, tmp_path: Path) -> None:
        # With no base, and normalised weights that are all equal, a candidate is the uniform average.
        space = {"method": "linear", "parameters": {"weight": 1.0, "normalize": [True, False]}}
        config = small_search(folder, evaluations=1, space=space, base=None, search={"searcher": "random"})
        start(config, tmp_path / "run", executor=analytic_executor)
        run = load_run(tmp_path / "run")
        [known] = [event for event in evaluated(run.folder.path) if event.reused_from == "uniform"][:1]
        assert known.recipe_id == run.recipe_id("uniform")
        assert known.objectives == run.state.evaluations["uniform", "search"].objectives
        assert run.status()["evaluations"]["done"] == 1


class TestFailures:
    """Scoring that fails: the set-up's fault before anything was scored, a candidate's own afterwards."""

    def test_before_anything_was_scored_they_end_the_session_and_are_not_journaled(
        self, config: RunConfig, undisturbed: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        broken = failing(lambda *_: True)
        for session in (lambda: start(config, path, executor=broken), lambda: resume(path, executor=broken)):
            with pytest.raises(EvaluationError, match=r"nothing could be scored: .*disk of the worker.*resume the run"):
                session()
            assert evaluated(path) == []
            assert load_run(path).condition() == "interrupted"
        resume(path, executor=analytic_executor)
        assert story(path) == story(undisturbed)

    @pytest.mark.parametrize("evaluations", [1, 2, 5])
    def test_without_references_they_end_the_session_too(self, folder: Path, tmp_path: Path, evaluations: int) -> None:
        config = small_search(folder, evaluations=evaluations, references=NO_REFERENCES)
        with pytest.raises(EvaluationError, match="nothing could be scored"):
            start(config, tmp_path / "run", executor=failing(lambda *_: True))
        assert evaluated(tmp_path / "run") == []

    def test_of_the_first_candidate_alone_is_its_own_once_another_was_scored(
        self, folder: Path, tmp_path: Path
    ) -> None:
        config = small_search(folder, evaluations=6, references=NO_REFERENCES)
        first: list[str] = []

        def fails(call: int, identity: str, split: Split) -> bool:
            first.append(identity)
            return identity == first[0]

        path = tmp_path / "run"
        assert start(config, path, executor=failing(fails)).ending == "finished"
        states = {event.candidate: event.state for event in evaluated(path) if event.split == "search"}
        assert states[0] == "failed"
        assert list(states.values()).count("failed") == 1
        assert len(states) == 6
        assert verify(path).open == 0

    def test_afterwards_a_failure_is_journaled_and_the_search_goes_on(self, config: RunConfig, tmp_path: Path) -> None:
        path = tmp_path / "run"
        seen: list[str] = []

        def fails(call: int, identity: str, split: Split) -> bool:
            if identity not in seen:
                seen.append(identity)
            return split == "search" and seen.index(identity) in (1, 7, 8, 11)

        assert start(config, path, executor=failing(fails)).ending == "finished"
        failed = [event for event in evaluated(path) if event.state == "failed"]
        assert [event.candidate for event in failed] == ["parent:letters", 1, 2, 5]
        for event in failed:
            assert event.reason is not None
            assert event.reason.startswith("error: the disk of the worker is gone")
            assert (event.objectives, event.scores) == ({}, None)
        status = load_run(path).status()
        assert status["evaluations"]["done"] == 10
        assert status["evaluations"]["failed"] == sum(isinstance(event.candidate, int) for event in failed)
        lost = [event for event in read_journal(path / "journal.jsonl") if isinstance(event, Retried)]
        assert len(lost) == 2 * len(failed)
        assert verify(path).candidates == 10

    def test_an_error_that_another_try_cannot_mend_is_not_tried_again(self, config: RunConfig, tmp_path: Path) -> None:
        executor = failing(lambda call, identity, split: call == 7, ValueError("shapes"))
        start(config, tmp_path / "run", executor=executor)
        events = read_journal(tmp_path / "run" / "journal.jsonl")
        assert not [event for event in events if isinstance(event, Retried)]
        assert [event.attempt for event in events if isinstance(event, Evaluated) and event.state == "failed"] == [1]

    def test_a_finalist_that_cannot_be_validated_does_not_stop_the_run(self, config: RunConfig, tmp_path: Path) -> None:
        executor = failing(lambda call, identity, split: split == "validation")
        assert start(config, tmp_path / "run", executor=executor).ending == "finished"
        run = load_run(tmp_path / "run")
        assert run.selection_split == "search"
        assert run.best() is not None


class _DrainsAfter:
    """An observer that sends SIGTERM at its n-th look."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self, figures: Mapping[str, Any]) -> None:
        import os
        import signal

        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("looks", [1, 3, 6, 8, 15, 17, 20])
def test_drained_at_any_instant_the_run_pauses_soon_and_then_ends_as_the_undisturbed_one(
    config: RunConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    monkeypatch.setattr(coordinator, "LOOK_S", 0.0)
    path = tmp_path / "run"
    assert start(config, path, executor=analytic_executor, observer=_DrainsAfter(looks)).ending == "paused"
    events = read_journal(path / "journal.jsonl")
    assert isinstance(events[-1], Paused)
    assert events[-1].reason == "terminated"
    # One was scored at each look, references too; a drain begins nothing, so at most one more is finished.
    assert looks <= len(evaluated(path)) <= looks + 1
    assert load_run(path).state.open_ids == ()
    assert load_run(path).condition() == "paused"
    resume(path, executor=analytic_executor)
    assert story(path) == story(undisturbed)


def test_the_front_the_finalists_and_the_references_are_validated_and_the_test_split_stays_sealed(
    undisturbed: Path,
) -> None:
    run = load_run(undisturbed)
    events = evaluated(undisturbed)
    validated = {event.candidate for event in events if event.split == "validation"}
    assert validated >= {*run.archive().front(), *run.state.references}
    ranked = sorted(
        (entry for entry in run.archive().entries if entry.feasible),
        key=lambda entry: -sum(entry.objectives),
    )
    assert validated >= {entry.id for entry in ranked[: run.config.finalists]}
    assert {event.split for event in events} == {"search", "validation"}
    assert isinstance(read_journal(undisturbed / "journal.jsonl")[-1], Finished)
    for event in events:
        assert event.state != "feasible" or list(event.objectives) == list(OBJECTIVES)


def test_a_suite_without_a_validation_share_ends_with_the_search(folder: Path, tmp_path: Path) -> None:
    suite = (folder / "suite.yaml").read_text().replace("validation: 0.3, test: 0.3", "validation: 0, test: 0.6")
    (folder / "no-validation.yaml").write_text(suite)
    fitness = {"suite": "no-validation.yaml", "objectives": list(OBJECTIVES)}
    start(small_search(folder, evaluations=4, fitness=fitness), tmp_path / "run", executor=analytic_executor)
    assert {event.split for event in evaluated(tmp_path / "run")} == {"search"}
    assert load_run(tmp_path / "run").selection_split == "search"


def test_what_was_asked_is_journaled_before_it_is_scored(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    unannounced: list[str] = []

    def look(call: int, identity: str, split: Split) -> bool:
        events = read_journal(path / "journal.jsonl")
        known = {event.recipe_id for event in events if isinstance(event, (Asked, Reference))}
        if identity not in known:
            unannounced.append(identity)
        return False

    start(config, path, executor=failing(look))
    assert not unannounced


def test_documents_that_changed_between_two_sessions_stop_the_run(config: RunConfig, tmp_path: Path) -> None:
    class EditedSuite(AnalyticScorer):
        def score(self, recipe: Recipe, split: Split) -> Evaluation:
            evaluation = super().score(recipe, split)
            changed = {task: (*hashes[1:], "edited") for task, hashes in evaluation.documents.items()}
            return replace(evaluation, documents=changed)

    path = tmp_path / "run"
    start(config, path, executor=analytic_executor)
    before = story(path)
    with pytest.raises(StateError, match="documents of the search split have changed since the run started"):
        resume(
            path,
            ["budget.evaluations=12"],
            executor=lambda problem: InlineExecutor(problem.config.executor, lambda: EditedSuite(problem)),
        )
    measured = [line for line in story(path) if line[0] == "evaluated" and line[5]]
    assert measured == [line for line in before if line[0] == "evaluated" and line[5]]
