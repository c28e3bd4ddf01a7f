from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.documents import parse_yaml
from evomerge.errors import RunHeldError, StateError
from evomerge.run.config import RunConfig
from evomerge.run.folder import RunFolder, config_data, config_digest, environment, first_difference
from evomerge.run.lease import Lease


def changed(config: RunConfig, **changes: object) -> RunConfig:
    return RunConfig.model_validate({**config_data(config), **changes})


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"tokenizer": {"from": "base"}},
        {"tokenizer": {"union": ["base", "math"], "missing": "zero"}},
        {"space": {"method": ["ties", "linear"], "parameters": {"weight": [0, 1], "normalize": True}}},
        {
            "sources": {
                "a": {"model": "org/a", "revision": "r"},
                "b": {"model": {"recipe": 1, "sources": {"c": {"model": "d"}}}},
            }
        },
    ],
)  # fmt: skip
def test_a_config_is_read_back_from_its_folder_as_it_was_given(
    tmp_path: Path, config: RunConfig, extra: dict[str, object]
) -> None:
    given = changed(config, **({"base": None} if "sources" in extra else {}), **extra)
    folder = RunFolder.create(tmp_path / "run", given)
    read = RunFolder.open(tmp_path / "run").config()
    assert read == given
    assert config_digest(read) == config_digest(given)
    folder.check_config(given)


def test_a_new_folder_has_what_the_design_names(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "a" / "run", config)
    assert {"config.yaml", "environment.json", "scores", "artifacts"} <= {path.name for path in folder.path.iterdir()}
    assert yaml.safe_load(folder.config_path.read_text())["search"]["searcher"] == "cma_es"
    assert folder.name == "run"
    assert not list(folder.path.rglob("*.tmp"))


def test_the_environment_names_versions_and_no_local_paths(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    data = json.loads(folder.environment_path.read_text())
    assert data == environment()
    assert {"python", "platform", "cpu_count", "packages"} <= set(data)
    assert "numpy" in data["packages"]
    assert str(Path.home()) not in folder.environment_path.read_text()
    assert str(tmp_path) not in folder.environment_path.read_text()


def test_an_existing_run_is_refused_with_the_command_that_continues_it(tmp_path: Path, config: RunConfig) -> None:
    RunFolder.create(tmp_path / "run", config)
    with pytest.raises(StateError, match="evomerge resume"):
        RunFolder.create(tmp_path / "run", config)


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(StateError, match=r"thesis\.tex"):
        RunFolder.create(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_a_crash_left_half_made_can_be_created_again(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / ".config.yaml.tmp").write_text("na")
    assert RunFolder.create(tmp_path, config).config() == config


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StateError, match="this is a file"):
        RunFolder.create(tmp_path / "run", config)


def test_two_coordinators_cannot_make_one_folder(tmp_path: Path, config: RunConfig) -> None:
    with Lease(tmp_path), pytest.raises(RunHeldError):
        RunFolder.create(tmp_path, config)


def test_a_missing_folder_or_one_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no such folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(StateError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_run_whose_journal_was_removed_is_refused(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    RunFolder.open(folder.path)
    (folder.path / "scores" / "x").write_bytes(b"")
    with pytest.raises(StateError, match="restore it from a copy"):
        RunFolder.open(folder.path)


def test_a_broken_config_in_the_folder_is_a_state_error(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    folder.config_path.write_text("nam: x\n")
    with pytest.raises(StateError, match=r"config\.yaml:1: nam: unknown key"):
        folder.config()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "other"}, "name is \"example\" there and \"other\" here"),
        ({"search": {"seed": 4}}, "search.seed is 3 there and 0 here"),
        ({"base": None}, "base is \"base\" there and null here"),
    ],
)  # fmt: skip
def test_another_config_is_refused_by_its_first_differing_key(
    tmp_path: Path, config: RunConfig, changes: dict[str, object], key: str
) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    given = changed(config, **changes)
    if "search" in changes:
        given = changed(config, search={**config_data(config)["search"], "seed": 0})
    with pytest.raises(StateError, match="belongs to another config") as error:
        folder.check_config(given)
    assert key in str(error.value)


def test_budget_and_executor_may_change_unless_they_are_asked_for(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    given = changed(config, budget={"evaluations": 99}, executor={"kind": "ray", "workers": 8})
    folder.check_config(given)
    assert config_digest(given) == config_digest(config)
    with pytest.raises(StateError, match=r"budget\.evaluations is 8 there and 99 here"):
        folder.check_config(given, may_change=("executor",))


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/passwd", "link/x"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, config: RunConfig, relative: str) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    (folder.path / "link").symlink_to(tmp_path)
    with pytest.raises(StateError, match="leaves the run folder"):
        folder.inside(relative)
    with pytest.raises(StateError, match="leaves the run folder"):
        folder.write_text(relative, "x")
    assert folder.inside("artifacts/plot.html") == (folder.path / "artifacts" / "plot.html").resolve()


def test_a_text_file_is_replaced_as_a_whole(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder.create(tmp_path / "run", config)
    for text in ("one", "two"):
        assert folder.write_text("artifacts/deep/note.txt", text).read_text() == text


def test_first_difference_names_the_place() -> None:
    one = parse_yaml("{a: 1, b: [1, {c: 2}], d: 3}").data
    assert first_difference(one, parse_yaml("{a: 1, b: [1, {c: 2}], d: 3}").data) is None
    assert first_difference(one, parse_yaml("{a: 1, b: [1, {c: 3}], d: 4}").data) == ("b", 1, "c")
    assert first_difference(one, parse_yaml("{a: 1, b: [1, {c: 2}]}").data) == ("d",)
    assert first_difference({"a": 1}, {"a": True}) == ("a",)
