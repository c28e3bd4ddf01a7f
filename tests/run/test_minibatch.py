"""Minibatches: a generation shares documents, the next one has others, finalists see the whole validation split."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import Run, load_run
from tests.run.small import small_search, write_problem
from tests.run.test_resume import story

POPULATION = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("minibatch") / "run"
    start(_config(folder, evaluations=8), path)
    return load_run(path)


def _config(folder: Path, *, evaluations: int):  # type: ignore[no-untyped-def]
    search = {"searcher": "cma_es", "seed": 0, "minibatch": 6, "options": {"population": POPULATION}}
    return small_search(folder, evaluations=evaluations, search=search)


def documents(run: Run, candidate: int | str, split: str = "search") -> dict[str, tuple[str, ...]]:
    evaluation = run.scores(candidate, split)  # type: ignore[arg-type]
    assert evaluation is not None
    return dict(evaluation.documents)


def test_a_generation_shares_its_documents_and_the_next_has_others(run: Run) -> None:
    generations = [[documents(run, number) for number in range(start, start + POPULATION)] for start in (0, POPULATION)]
    for generation in generations:
        assert all(found == generation[0] for found in generation)
        assert {len(digests) for digests in generation[0].values()} == {6}
    assert generations[0][0] != generations[1][0]


def test_references_and_finalists_are_scored_on_whole_splits(run: Run) -> None:
    whole = documents(run, "uniform")
    assert min(len(digests) for digests in whole.values()) > 6
    assert all(set(documents(run, 0)[task]) <= set(digests) for task, digests in whole.items())
    validated = [event.candidate for event in run.state.of_split("validation").values()]
    assert [number for number in validated if isinstance(number, int)]
    assert len({str(documents(run, who, "validation")) for who in validated}) == 1


def test_a_resumed_run_draws_the_same_minibatches(run: Run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    start(_config(folder, evaluations=3), path)
    resume(path, ["budget.evaluations=8"])
    searched = [line for line in story(path) if line[0] == "asked" or line[3] == "search"]
    assert searched == [line for line in story(run.folder.path) if line[0] == "asked" or line[3] == "search"]
    assert verify(path).candidates == 8
    events = read_journal(path / "journal.jsonl")
    asked = [event for event in events if isinstance(event, Asked)]
    scored = [event for event in events if isinstance(event, Evaluated) and event.split == "search"]
    assert len(asked) == 8
    assert len({event.candidate for event in scored}) == len(scored)
