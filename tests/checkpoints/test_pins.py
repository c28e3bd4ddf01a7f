"""Names of sources on a hub move; the commits that they meant do not."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from evomerge.checkpoints import hub_commits, open_checkpoint, pinned, resolve_model
from evomerge.errors import SourceError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.testing.checkpoints import write_tiny_llama
from tests.checkpoints.hub import write_cached

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one commit of `org/model`, on a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_cached(tmp_path / "cache", "org/model", FIRST, write_tiny_llama(tmp_path / "first", seed=1))
    return tmp_path / "cache"


def test_a_name_is_held_to_what_it_meant_when_it_was_asked_for(cache: Path, tmp_path: Path) -> None:
    sources = {"a": SourceConfig(model="org/model"), "b": SourceConfig(model="org/model", revision="main")}
    commits = hub_commits(sources, tmp_path)
    assert commits == {"org/model": FIRST, "org/model@main": FIRST}

    write_cached(cache, "org/model", SECOND, write_tiny_llama(tmp_path / "second", seed=2))
    held = pinned(sources, commits)

    assert {source.revision for source in held.values()} == {FIRST}
    found = open_checkpoint(resolve_model("org/model", held["a"].revision, tmp_path))
    assert found.content_hash == open_checkpoint(tmp_path / "first").content_hash
    assert hub_commits(sources, tmp_path)["org/model"] == SECOND
    assert hub_commits(held, tmp_path) == {}, "a commit is asked for no more"


def test_adapters_and_sources_of_nested_recipes_are_held_too(cache: Path, tmp_path: Path) -> None:
    write_cached(cache, "org/adapter", SECOND, tmp_path / "first")
    inner = Recipe.from_mapping(
        {"recipe": 1, "sources": {"x": {"model": "org/model"}}, "blend": {"method": "linear", "weight": 1.0}}
    )
    sources = {
        "merged": SourceConfig(model=inner),
        "adapted": SourceConfig(model="org/model", revision=FIRST, adapter="org/adapter"),
    }
    commits = hub_commits(sources, tmp_path)
    held = pinned(sources, commits)

    assert commits == {"org/model": FIRST, "org/adapter": SECOND}
    assert isinstance(held["merged"].model, Recipe)
    assert held["merged"].model.sources["x"].revision == FIRST
    assert held["merged"].revision is None
    assert (held["adapted"].revision, held["adapted"].adapter_revision) == (FIRST, SECOND)
    assert Recipe.from_mapping(held["merged"].model.to_mapping()) == held["merged"].model


def test_what_is_on_this_machine_has_no_commit(cache: Path, tmp_path: Path) -> None:
    """Also where a folder has the name of a model on the hub."""
    write_tiny_llama(tmp_path / "org" / "model")
    sources = {
        "zoo": SourceConfig(model="zoo:base"),
        "folder": SourceConfig(model=str(tmp_path / "first")),
        "named": SourceConfig(model="org/model"),
    }
    assert hub_commits(sources, tmp_path) == {}
    assert pinned(sources, {}) == sources


def test_a_source_that_cannot_be_reached_is_named(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^sources\.a: model 'org/other': neither a local folder nor in the hub's"):
        hub_commits({"a": SourceConfig(model="org/other")}, tmp_path)
