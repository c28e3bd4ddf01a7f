"""Recipes of other spaces: each space reads them or refuses them as a `ConfigError`, whatever they are."""

from __future__ import annotations

from contextlib import suppress

import pytest

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.search import genome_from_unit
from evomerge.spaces import Space, SpaceConfig, create_space
from tests.spaces.test_piecewise_space import bred
from tests.spaces.test_piecewise_space import space as piecewise

SOURCES = {alias: SourceConfig(model=alias) for alias in ("base", "math", "ja")}
CONFIGS = (
    {"method": "ties", "groups": {"layers": 3}},
    {"method": ("ties", "task_arithmetic"), "groups": {"layers": 3, "method": True}},
    {"groups": {"modules": ("attention",), "embeddings": True, "head": True}, "lines": {}},
    {"kind": "data_flow"},
    {"kind": "data_flow", "encoding": "mixed"},
    {"kind": "data_flow", "encoding": "network"},
    {"kind": "joint"},
)


@pytest.fixture(scope="module")
def spaces() -> list[Space]:
    made = [
        create_space(SpaceConfig.model_validate(config), sources=SOURCES, base="base", num_layers=3, dtype="float32")
        for config in CONFIGS
    ]
    return [*made, piecewise(3), piecewise(3, whole=True)]


def test_a_space_decodes_what_it_encodes_and_refuses_all_else(spaces: list[Space]) -> None:
    recipes = [
        space.decode(genome_from_unit(space, [unit] * len(space.dimensions))) for space in spaces for unit in (0.1, 0.9)
    ]
    own = piecewise(3)
    recipes += [own.recipe(individual) for individual in bred(own, 8, seed=1)]
    recipes.append(Recipe.from_mapping({"recipe": 1, "sources": SOURCES, "blend": {"method": "linear", "weight": 1.0}}))
    read = 0
    for space in spaces:
        for recipe in recipes:
            with suppress(ConfigError):  # any other error would end a run that the recipe is injected into
                assert space.decode(space.encode(recipe)) == recipe
                read += 1
    assert read >= len(spaces)
