"""A run of a portfolio: one journal and one budget for all its searchers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.cluster import InlineExecutor
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from evomerge.search import Candidate, Outcome, Portfolio

from .small import AnalyticScorer, small_search, write_problem

STAGES = [
    {"searcher": "natural_niches", "options": {"archive": 4}, "until": {"evaluations": 8}},
    {"searcher": "nsga_ii", "options": {"population": 4}, "until": {"stagnation": 12}},
    {"searcher": "tpe"},
]


class WideExecutor(InlineExecutor):
    """Takes two jobs at once, so that candidates are open while others are asked for."""

    @property
    def capacity(self) -> int:
        return 2


def wide(problem: Problem) -> WideExecutor:
    return WideExecutor(problem.config.executor, lambda: AnalyticScorer(problem))


def search(folder: Path, evaluations: int, *, together: bool) -> RunConfig:
    settings: dict[str, Any] = {"searcher": "portfolio", "options": {"together": together, "stages": STAGES}}
    return small_search(folder, evaluations=evaluations, space={"kind": "piecewise", "chunks": 3}, search=settings)


@pytest.fixture(scope="module")
def problem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.mark.parametrize("together", [False, True])
def test_a_portfolio_resumes_and_verifies(problem_folder: Path, tmp_path: Path, *, together: bool) -> None:
    path = tmp_path / "run"
    start(search(problem_folder, 12, together=together), path, executor=wide)
    resume(path, ["budget.evaluations=24"], executor=wide)
    report = verify(path)
    assert (report.candidates >= 24, report.open) == (True, 0)
    asked = load_run(path).state.asked
    assert {event.origin.split()[2] for event in asked.values()} >= {"natural_niches", "nsga_ii"}
    assert all(parent < number for number, event in asked.items() for parent in event.parents)


def test_the_journal_has_the_order_of_asks_and_tells(
    problem_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a source was scored as a parent, so that it is told while there is room for more candidates."""
    calls: list[tuple[str, int]] = []

    class Watched(Portfolio):
        def ask(self, n: int) -> list[Candidate]:
            candidates = super().ask(n)
            calls.extend(("asked", candidate.id) for candidate in candidates)
            return candidates

        def tell(self, candidate: Candidate, outcome: Outcome) -> None:
            calls.append(("evaluated", candidate.id))
            super().tell(candidate, outcome)

    monkeypatch.setattr("evomerge.search.Portfolio", Watched)
    start(search(problem_folder, 8, together=False), tmp_path / "run", executor=wide)
    events = [
        event for event in read_journal(tmp_path / "run" / "journal.jsonl") if isinstance(event, Asked | Evaluated)
    ]
    searched = [event for event in events if isinstance(event, Asked) or event.split == "search"]
    assert [
        (type(event).__name__.lower(), event.candidate) for event in searched if isinstance(event.candidate, int)
    ] == calls
    assert any(isinstance(event, Evaluated) and event.reused_from is not None for event in events)
