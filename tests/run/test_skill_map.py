"""The archive that competition keeps, followed through a journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import StateError
from evomerge.run.replay import replay
from evomerge.run.session import start
from evomerge.run.skill_map import skill_map
from evomerge.run.view import Run, load_run
from evomerge.search import NaturalNiches
from tests.run.small import DOCUMENTS, OBJECTIVES, analytic_executor, small_search, write_problem

NICHES = {"space": {"kind": "piecewise"}, "search": {"searcher": "natural_niches", "options": {"archive": 5}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("niches") / "run"
    start(small_search(folder, evaluations=30, **NICHES), path, executor=analytic_executor)
    return load_run(path)


def test_the_archive_is_the_one_that_the_searcher_had(run: Run) -> None:
    searcher = NaturalNiches(run.space, seed=0, options={"archive": 5}, metrics=OBJECTIVES)
    replay(run.events, searcher, identify=run_identity(run), store=run.folder.scores)
    skills = skill_map(run)
    assert sorted(skills.members) == sorted(searcher.members)
    by_id = dict(zip(searcher.members, searcher.scores, strict=True))
    assert all(np.array_equal(row, by_id[member]) for member, row in zip(skills.members, skills.scores, strict=True))
    assert skills.history[-1, 1] == searcher.status()["coverage"]
    assert skills.history[-1, 2] == searcher.status()["entropy"]


def run_identity(run: Run):  # type: ignore[no-untyped-def]
    from evomerge.recipe import identity
    from evomerge.run.replay import source_infos

    infos = source_infos(run.state.started)  # type: ignore[arg-type]
    return lambda recipe: identity(recipe, infos)


def test_what_is_told_adds_up(run: Run) -> None:
    facts = skill_map(run).to_json()
    samples = facts["samples"]
    assert {name: len(part["owner"]) for name, part in samples.items()} == dict.fromkeys(OBJECTIVES, DOCUMENTS)
    owned = [owner for part in samples.values() for owner in part["owner"]]
    for member in facts["members"]:
        assert member["owns"] == owned.count(member["id"])
    solved = sum(owner is not None for owner in owned)
    assert sum(member["share"] for member in facts["members"]) == pytest.approx(solved)
    assert sum(cluster["samples"] for cluster in facts["clusters"]) == 2 * DOCUMENTS
    assert all(pair["gain"] >= 0 and pair["union"] <= facts["coverage"] + 1e-12 for pair in facts["pairs"])
    assert facts["pairs"][0]["gain"] == max(pair["gain"] for pair in facts["pairs"])


def test_any_search_with_scores_per_sample_has_a_map(folder: Path, tmp_path: Path) -> None:
    start(small_search(folder, evaluations=8), tmp_path / "run", executor=analytic_executor)
    assert len(skill_map(load_run(tmp_path / "run")).members) >= 2


def test_a_search_by_minibatches_has_none(folder: Path, tmp_path: Path) -> None:
    config = small_search(folder, evaluations=4)
    config = config.model_copy(update={"search": config.search.model_copy(update={"minibatch": 5})})
    start(config.model_copy(update={"finalists": 0}), tmp_path / "run", executor=analytic_executor)
    with pytest.raises(StateError, match="documents of its own"):
        skill_map(load_run(tmp_path / "run"))
