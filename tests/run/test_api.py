"""The Python interface: by hand with ask and tell, a whole run, reading a run, building a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

import evomerge
from evomerge.documents import dump_yaml
from evomerge.errors import ConfigError, StateError
from evomerge.run.config import RunConfig
from evomerge.run.folder import config_data
from evomerge.search import Outcome
from tests.run.small import analytic_executor, small_search, write_problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture
def config(folder: Path) -> RunConfig:
    return small_search(folder, evaluations=6)


def weight(candidate: evomerge.run.api.Candidate) -> float:  # type: ignore[name-defined]
    return float(sum(gene for gene in candidate.genome if isinstance(gene, float)))


def test_a_search_is_driven_by_hand_with_no_files(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    search = evomerge.Search(config)
    best = []
    for _ in range(15):
        scored = [(candidate, -abs(weight(candidate) - 1.0)) for candidate in search.ask(4)]
        assert len({search.recipe_id(candidate) for candidate, _ in scored}) == 4
        for candidate, value in scored:
            search.tell(candidate, Outcome("feasible", (value, value)))
        best.append(max(value for _, value in scored))
    assert max(best[-5:]) > max(best[:2])
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_asks_the_same(config: RunConfig) -> None:
    one, other = evomerge.Search(config).ask(4), evomerge.Search(config).ask(4)
    assert [candidate.genome for candidate in one] == [candidate.genome for candidate in other]


def test_a_search_comes_from_a_file_or_from_plain_data(config: RunConfig, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(dump_yaml(config_data(config)))
    from_file = evomerge.Search.from_file(tmp_path / "search.yaml", ["search.seed=5"])
    data = {
        "sources": {alias: {"model": alias} for alias in ("base", "letters", "digits")},
        "base": "base",
        "fitness": {"suite": "suite.yaml", "objectives": ["letters.exact_match"]},
        "search": {"seed": 5},
    }
    from_data = evomerge.Search.from_mapping(data, folder)
    assert from_file.config.search.seed == from_data.config.search.seed == 5
    assert len(from_data.space.dimensions) == 2
    with pytest.raises(ConfigError, match="did you mean 'fitness'"):
        evomerge.Search.from_mapping({**data, "fitnes": {}}, folder)


def test_a_search_runs_to_its_end_and_is_read(config: RunConfig, tmp_path: Path) -> None:
    run = evomerge.Search(config).run(tmp_path / "run", executor=analytic_executor)
    assert run.status()["state"] == "finished"
    again = evomerge.load_run(tmp_path / "run")
    assert again.status()["evaluations"]["done"] == 6
    assert again.best() == run.best()
    with pytest.raises(StateError, match="evomerge resume"):
        evomerge.Search(config).run(tmp_path / "run", executor=analytic_executor)


def test_a_recipe_of_a_run_is_built(config: RunConfig, tmp_path: Path) -> None:
    run = evomerge.Search(config).run(tmp_path / "run", executor=analytic_executor)
    best = run.best()
    assert best is not None
    report = evomerge.merge(run.recipe(best), tmp_path / "model")
    assert report.recipe_id == run.recipe_id(best)
    recipe = evomerge.Recipe.from_yaml((tmp_path / "model" / "recipe.yaml").read_text())
    assert recipe.base == "base"
    again = evomerge.merge(tmp_path / "model" / "recipe.yaml", tmp_path / "again")
    assert again.recipe_id == report.recipe_id
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()


def test_names_are_imported_on_first_use_and_unknown_ones_are_errors() -> None:
    assert set(evomerge.__all__) <= set(dir(evomerge))
    with pytest.raises(AttributeError, match="nothing"):
        _ = evomerge.nothing
