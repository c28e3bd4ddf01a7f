"""The joint space: a merge in the pool of a route, both in one genome."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.documents import Document
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig, SourceInfo, identity
from evomerge.search import genome_from_unit
from evomerge.spaces import JointSpace, SpaceConfig, create_space

SOURCES = {alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "math", "ja")}
INFOS = {alias: SourceInfo(f"hash-{alias}", 3) for alias in SOURCES}


def space(sources: dict[str, SourceConfig] = SOURCES, **keys: Any) -> JointSpace:
    config = Document(data={"kind": "joint", "repeats": 2, **keys}, name="space", lines={}).parse(SpaceConfig)
    found = create_space(config, sources=sources, base="base", num_layers=3)
    assert isinstance(found, JointSpace)
    return found


def test_a_genome_is_that_of_the_merge_and_that_of_the_route() -> None:
    found = space(parameters={"weight": [0.0, 1.5]})
    names = [dimension.name for dimension in found.dimensions]

    assert names[:3] == ["weight/math", "weight/ja", "route/keep/0/merged.0"]
    assert all(name.startswith("route/") for name in names[2:])
    assert found.parts == {"parameter": slice(0, 2), "data_flow": slice(2, len(names))}
    assert {name.split("/")[3].split(".")[0] for name in names if "keep" in name} == {"merged", "math", "ja"}


@pytest.mark.parametrize("encoding", ["paper", "hop_scales", "network", "mixed"])
def test_a_route_at_rest_is_the_plain_merge(encoding: str) -> None:
    found = space(encoding=encoding)
    recipe = found.decode(found.start)

    assert "merged" not in recipe.sources
    assert recipe.layers is None
    assert found.encode(recipe) == found.start


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["paper", "hop_scales", "mixed"]), st.randoms(use_true_random=False))
def test_encode_is_a_right_inverse_and_every_recipe_has_an_identity(encoding: str, rng: Any) -> None:
    found = space(encoding=encoding, order=["merged", "ja"])
    recipe = found.decode(genome_from_unit(found, [rng.random() for _ in found.dimensions]))

    assert found.decode(found.encode(recipe)) == recipe
    assert identity(recipe, INFOS) == identity(Recipe.from_yaml(recipe.to_yaml()), INFOS)


def test_the_merged_model_is_a_nested_recipe_and_model_a() -> None:
    found = space(scales="fixed")
    values = list(found.start)
    names = [dimension.name for dimension in found.dimensions]
    values[names.index("route/keep/1/ja.1")] = 0.5
    recipe = found.decode(tuple(values))

    assert list(recipe.sources) == ["merged", "base", "math", "ja"]
    assert recipe.sources["merged"].model == found.decode(found.start)
    assert [layer.take for layer in recipe.layers or ()] == [
        {"merged": 0},
        {"merged": 1},
        {"merged": 2},
        {"ja": 1},
        {"merged": 2},
    ]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"order": ["ja", "merged"]}, "space.order: the route of a joint space begins in `merged`"),
        ({"order": ["merged", "jaa"]}, "space.order: 'jaa' is not a source; did you mean 'ja'?"),
        ({"sources": {**SOURCES, "merged": SOURCES["ja"]}}, "sources.merged: a joint space calls the merged model so"),
    ],
)
def test_what_does_not_fit_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**keys)
    assert text in str(caught.value)


# ---- which keys belong to which kind


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"kind": "data_flow", "method": "ties"}, "space: method: is for `kind: parameter` or `joint`"),
        (
            {"kind": "data_flow", "parameters": {"weight": 1.0}},
            "space: parameters: is for `kind: parameter` or `joint`",
        ),
        ({"kind": "data_flow", "schedule": "alternating"}, "space: schedule: is for `kind: joint`"),
        ({"encoding": "paper"}, "space: encoding: is for `kind: data_flow` or `joint`"),
        ({"max_hops": 8}, "space: max_hops: is for `kind: data_flow` or `joint`"),
        ({"stage_evaluations": 8}, "space: stage_evaluations: is for `kind: joint`"),
        ({"kind": "data_flow", "order": ["a"]}, "space: order: give two or more different sources"),
        (
            {"kind": "data_flow", "scales": [0.0, 1.5]},
            "space: scales: expected a range [low, high] of positive factors",
        ),
        (
            {"kind": "data_flow", "scales": [1.1, 1.5]},
            "space: scales: expected a range [low, high] of positive factors",
        ),
    ],
)
def test_a_key_of_another_kind_is_an_error_that_names_it(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Document(data=section, name="space", lines={}).parse(SpaceConfig)
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["parameter", "data_flow", "joint"])
def test_a_resolved_section_with_all_defaults_spelled_out_reads_back(kind: str) -> None:
    config = SpaceConfig.model_validate({"kind": kind})

    assert SpaceConfig.model_validate(config.model_dump(mode="json")) == config
