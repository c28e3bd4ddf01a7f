"""Ready spaces and what overlays them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.catalog import catalog_entries, catalog_root
from evomerge.documents import parse_yaml, read_yaml
from evomerge.errors import ConfigError
from evomerge.recipe import SourceConfig
from evomerge.spaces import Grams, SpaceConfig, create_space, read_space

READY = """\
method: ties
groups: {layers: 2, modules: [mlp]}
parameters: {weight: [0, 1.5], density: 0.5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ready.yaml").write_text(READY)
    return tmp_path


def test_a_section_without_from_is_itself(folder: Path) -> None:
    assert read_space({"method": "linear"}, folder.joinpath) == {"method": "linear"}


def test_groups_and_parameters_are_overlaid_key_by_key(folder: Path) -> None:
    section = {"from": "ready.yaml", "groups": {"layers": 4}, "parameters": {"density": [0.1, 1.0]}}

    assert read_space(section, folder.joinpath) == {
        "method": "ties",
        "groups": {"layers": 4, "modules": ["mlp"]},
        "parameters": {"weight": [0, 1.5], "density": [0.1, 1.0]},
    }
    assert section["groups"] == {"layers": 4}


def test_other_keys_replace(folder: Path) -> None:
    assert read_space({"from": "ready.yaml", "method": "dare_ties"}, folder.joinpath)["method"] == "dare_ties"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            READY.replace("layers: 2", "layer: 2"),
            r"ready\.yaml:2: groups\.layer: unknown key 'layer'; did you mean 'layers'",
        ),
        (
            READY.replace("layers: 2", "layers: evry"),
            r"ready\.yaml:2: groups\.layers: .* did you mean 'every'",
        ),
        (
            READY.replace("layers: 2", "layers: 0"),
            r"ready\.yaml:2: groups\.layers: expected `whole`, `every` or a number",
        ),
        (
            READY.replace("[mlp]", "[mlp, mlp]"),
            r"ready\.yaml:2: groups\.modules: a module group stands twice",
        ),
        (
            READY.replace("[mlp]", "[norms]"),
            r"ready\.yaml:2: groups\.modules\[0\]: input should be 'attention', 'mlp'",
        ),
        (READY.replace("0.5", "null"), r"ready\.yaml:3: parameters\.density: "),
        (
            READY.replace("ties", "[ties, ties]"),
            r"ready\.yaml:1: method: give one method, or a list of different",
        ),
        (READY + "from: other.yaml\n", r"ready\.yaml:4: from: a ready space .* starts from no other"),
        ("- 1\n", r"ready\.yaml:1: expected a mapping"),
    ],
)
def test_a_wrong_ready_space_is_named_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "ready.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space({"from": "ready.yaml"}, folder.joinpath)


def test_a_missing_ready_space_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_space({"from": "nothing.yaml"}, folder.joinpath)
    with pytest.raises(ConfigError, match=r"space\.from: expected the name of a file, got 3"):
        read_space({"from": 3}, folder.joinpath)


@pytest.mark.parametrize("entry", catalog_entries()["search_spaces"])
def test_every_space_of_the_catalogue_works(entry: str) -> None:
    """Each makes recipes for a base and two experts (slerp: one), and says in a comment what it is."""
    path = catalog_root() / entry
    config = read_yaml(path).parse(SpaceConfig)
    experts = ("math",) if "slerp" in config.methods else ("math", "ja")
    aliases = ("base", *experts)
    named = ("whole",) if config.chromosomes == "whole" else (*config.chromosomes, "rest")
    vectors = np.random.default_rng(0).normal(size=(len(aliases), 100)).astype(np.float32)
    space = create_space(
        config,
        sources={alias: SourceConfig(model=alias) for alias in aliases},
        base="base",
        num_layers=4,
        grams=Grams.of_vectors(aliases, {name: list(vectors) for name in named}),
    )

    assert space.encode(space.decode(space.start)) == space.start
    assert path.read_text().startswith("# ")


def test_a_range_in_a_search_file_keeps_its_words_and_numbers() -> None:
    text = "parameters: {a: [0, 1], b: [true, false], c: [none, l1], d: 1, e: true, f: l1}"
    parameters = parse_yaml(text).parse(SpaceConfig).parameters

    assert parameters == {"a": (0, 1), "b": (True, False), "c": ("none", "l1"), "d": 1, "e": True, "f": "l1"}
    assert str(parameters["b"]) == "(True, False)"  # not the numbers 1 and 0
    assert type(parameters["e"]) is bool
    assert not isinstance(parameters["d"], bool)
