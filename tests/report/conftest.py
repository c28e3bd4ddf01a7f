from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster import InlineExecutor
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run.events import Event
from evomerge.run.journal import JournalWriter, read_journal
from evomerge.run.problem import Problem
from evomerge.run.session import start
from evomerge.run.view import Run, load_run
from tests.run.small import analytic_executor, small_search, write_problem

LETTERS, DIGITS = "letters.exact_match", "digits.exact_match"
MakeRun = Callable[..., Run]


class _NeverFeasible:
    def score(self, recipe: Recipe, split: Split) -> Evaluation:
        return Evaluation(split=split, infeasible="the weights are not finite")

    def close(self) -> None:
        pass


def never_feasible(problem: Problem) -> InlineExecutor:
    return InlineExecutor(problem.config.executor, _NeverFeasible)


@pytest.fixture(scope="session")
def problem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="session")
def make_run(problem_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Returns a function that runs a small search to its end."""

    def run(
        *objectives: str, evaluations: int = 12, constraints: tuple[str, ...] = (), executor: Any = None, **more: Any
    ) -> Run:
        path = tmp_path_factory.mktemp("runs") / "run"
        fitness = {"suite": "suite.yaml", "objectives": list(objectives), "constraints": list(constraints)}
        more.setdefault("references", {"parents": True, "uniform": True, "coefficients": 3})
        config = small_search(problem_folder, evaluations=evaluations, fitness=fitness, **more)
        start(config, path, executor=executor or analytic_executor)
        return load_run(path)

    return run


@pytest.fixture(scope="session")
def one(make_run: MakeRun) -> Run:
    return make_run(LETTERS)


@pytest.fixture(scope="session")
def two(make_run: MakeRun) -> Run:
    return make_run(LETTERS, DIGITS, evaluations=24)


@pytest.fixture(scope="session")
def three(make_run: MakeRun) -> Run:
    return make_run(LETTERS, DIGITS, f"-{LETTERS} * {DIGITS}", evaluations=24)


def rewritten(run: Run, path: Path, change: Callable[[Event], Event | None]) -> Run:
    """Returns a copy of a run whose journal has other events; None leaves one out."""
    shutil.copytree(run.folder.path, path)
    (path / "journal.jsonl").unlink()
    events = [changed for event in read_journal(run.folder.journal) if (changed := change(event)) is not None]
    with JournalWriter(path / "journal.jsonl") as journal:
        for event in events:
            journal.append(event)
    return load_run(path)
