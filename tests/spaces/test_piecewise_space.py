from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.operators import block_grams
from evomerge.recipe import Recipe, SourceConfig, SourceInfo, identity
from evomerge.spaces import Genome, Grams, Pieces, PiecewiseSpace, SpaceConfig, create_space

SIZES = {"attention": 40, "embeddings": 30, "rest": 50}


def space(count: int = 2, *, whole: bool = False, **keys: Any) -> PiecewiseSpace:
    aliases = ["base", "math", "ja", "code"][:count]
    sizes = {"whole": 120} if whole else SIZES
    rng = np.random.default_rng(0)
    vectors = {name: list(rng.normal(size=(count, size)).astype(np.float32)) for name, size in sizes.items()}
    chromosomes = "whole" if whole else ("attention", "embeddings")
    found = create_space(
        SpaceConfig(kind="piecewise", **{"chromosomes": chromosomes, "chunks": 3, **keys}),
        sources={alias: SourceConfig(model=alias) for alias in aliases},
        base="base",
        num_layers=2,
        dtype="float32",
        grams=Grams.of_vectors(aliases, vectors),
    )
    assert isinstance(found, PiecewiseSpace)
    return found


def bred(of: PiecewiseSpace, steps: int, seed: int) -> list[Pieces]:
    rng = np.random.default_rng(seed)
    archive = list(of.founders())
    for step in range(steps):
        one, two = (archive[index] for index in rng.integers(len(archive), size=2))
        splits = [int(rng.integers(part.positions + 1)) for part in of.chromosomes]
        child = of.cross(one, two, splits=splits, mix=float(rng.choice([0.0, 1.0, rng.random()])), angle="whole")
        archive.append(of.mutate(child, seed=step, scale=0.01) if rng.random() < 0.2 else child)
    return archive


class TestDimensions:
    def test_every_source_but_the_first_has_one_in_every_chunk(self) -> None:
        found = space(3, chunks=2)
        assert [dimension.name for dimension in found.dimensions[:4]] == [
            "weight/math/attention/chunk.0",
            "weight/ja/attention/chunk.0",
            "weight/math/attention/chunk.1",
            "weight/ja/attention/chunk.1",
        ]
        assert len(found.dimensions) == 3 * 2 * 2
        assert [dimension.name for dimension in space(whole=True, chunks=1).dimensions] == ["weight/math/chunk.0"]

    def test_a_search_starts_at_the_average_within_the_range(self) -> None:
        assert set(space(4).start) == {0.25}
        assert set(space(2, range=(0.6, 2.0)).start) == {0.6}

    def test_numbers_are_the_mixture_of_equal_chunks_and_the_first_source_has_the_rest(self) -> None:
        recipe = space(3, whole=True, chunks=3).decode((0.25, 0.5, 0.0, 0.0, 0.0, 1.0))
        assert recipe.to_mapping()["segments"] == [
            {"until": 40, "weight": {"base": 0.25, "math": 0.25, "ja": 0.5}},
            {"until": 80, "weight": {"base": 1.0}},
            {"weight": {"ja": 1.0}},
        ]
        recipe = space(2, chunks=2).decode((0.5, 1.0, 0.0, 0.0, 1.0, 1.0))
        assert recipe.to_mapping()["segments"] == {
            "attention": [{"until": 20, "weight": {"base": 0.5, "math": 0.5}}, {"weight": {"math": 1.0}}],
            "embeddings": [{"weight": {"base": 1.0}}],
            "rest": [{"weight": {"math": 1.0}}],
        }


class TestGenomes:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(2, 4), st.booleans(), st.integers(0, 10_000))
    def test_genomes_individuals_and_recipes_of_bred_ones_say_the_same(
        self, count: int, whole: bool, seed: int
    ) -> None:
        of = space(count, whole=whole)
        for individual in bred(of, 6, seed):
            genome = of.genome(individual)
            assert of.individual(genome) == individual
            recipe = of.decode(genome)
            assert of.encode(recipe) == genome
            assert Recipe.from_yaml(recipe.to_yaml()) == recipe
            assert all(type(value) in (int, float, str) for value in genome)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(2, 4), st.booleans(), st.data())
    def test_genomes_of_numbers_too(self, count: int, whole: bool, data: st.DataObject) -> None:
        of = space(count, whole=whole, range=(-0.5, 1.5))
        weight = st.one_of(st.floats(-0.5, 1.5), st.sampled_from([0.0, 0.5, 1.0]))
        genome = tuple(data.draw(st.lists(weight, min_size=len(of.dimensions), max_size=len(of.dimensions))))
        assert of.genome(of.individual(genome)) == genome
        assert of.encode(of.decode(genome)) == genome

    def test_a_bred_genome_says_what_it_is(self) -> None:
        of = space(2, whole=True)
        one, two = of.founders()
        child = of.mutate(of.cross(one, two, splits=[7], mix=0.0, angle="part"), seed=9, scale=0.5)
        assert of.genome(child) == ("pieces", 2, 7, 120, 1.0, 0.0, 0.0, 1.0, 9, 0.5, 0.5)
        assert of.decode(of.genome(child)).to_mapping()["segments"] == [
            {"until": 7, "weight": {"base": 1.0}, "noise": {"9": 0.5}},
            {"weight": {"math": 1.0}, "noise": {"9": 0.5}},
        ]

    def test_what_numbers_can_say_is_written_as_numbers(self) -> None:
        of = space(2)
        assert [of.genome(founder) for founder in of.founders()] == [(0.0,) * 9, (1.0,) * 9]

    def test_a_founder_is_the_source_alone(self) -> None:
        of = space(3)
        infos = {alias: SourceInfo(alias, 2) for alias in ("base", "math", "ja")}
        alone = {"recipe": 1, "sources": {"math": {"model": "math"}}, "dtype": "float32", "tokenizer": {"from": "math"}}
        found = Recipe.from_mapping(
            {**of.decode(of.genome(of.founders()[1])).to_mapping(), "tokenizer": {"from": "math"}}
        )
        assert identity(found, infos) == identity(Recipe.from_mapping(alone), infos)

    @pytest.mark.parametrize(
        "genome",
        [
            (),
            (0.5,),
            ("pieces",),
            ("pieces", 0),
            ("pieces", 1, 120, 0.5),
            ("pieces", 1, 120, 0.5, 0.5, 3),
            ("pieces", 1, 119, 0.5, 0.5),
            ("pieces", 2, 70, 70, 0.5, 0.5, 0.5, 0.5),
            ("pieces", 1, 120.0, 0.5, 0.5),
            ("pieces", 1, 120, 0.5, float("nan")),
            ("pieces", 1, 120, 0.5, "much"),
            ("pieces", 1, 120, 0.5, 0.5, -1, 0.1),
            ("pieces", 1, 120, 0.5, 0.5, 2**64, 0.1),
            ("pieces", 1, 120, 0.5, 0.5, 2, 0.1, 1, 0.1),
            ("pisces", 1, 120, 0.5, 0.5),
        ],
    )
    def test_genomes_of_another_space_are_refused(self, genome: Genome) -> None:
        with pytest.raises(ConfigError, match="genome: "):
            space(whole=True).individual(genome)

    @pytest.mark.parametrize(
        "keys",
        [
            {"segments": None},
            {"segments": {"mlp": [{"weight": {"base": 1}}]}},
            {"segments": [{"until": 500, "weight": {"base": 1}}, {"weight": {"math": 1}}]},
            {"dtype": "float16"},
            {"blend": {"method": "linear"}},
        ],
    )
    def test_recipes_of_another_space_are_refused(self, keys: dict[str, Any]) -> None:
        of = space(whole=True)
        data = of.decode(of.start).to_mapping() | keys
        with pytest.raises(ConfigError, match="no genome of this space"):
            of.encode(Recipe.from_mapping({key: value for key, value in data.items() if value is not None}))


def test_pieces_of_large_chromosomes_end_at_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_grams, "MAX_POSITIONS", 16)
    of = space(whole=True, chunks=4)  # 15 blocks of 8
    assert [(part.name, part.positions) for part in of.chromosomes] == [("whole", 15)]
    recipe = of.decode((0.25, 0.5, 0.75, 1.0))
    assert [segment.get("until") for segment in recipe.to_mapping()["segments"]] == [24, 56, 88, None]
    assert of.encode(recipe) == (0.25, 0.5, 0.75, 1.0)
    off = {**recipe.to_mapping(), "segments": [{"until": 25, "weight": {"base": 1.0}}, {"weight": {"math": 1.0}}]}
    with pytest.raises(ConfigError, match="no genome of this space"):
        of.encode(Recipe.from_mapping(off))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"chunks": 31}, "space.chunks: 31 chunks were asked for, but chromosome 'embeddings' can be cut into 30"),
        ({"count": 1}, "sources: a piecewise space mixes at least two sources, got 1"),
    ],
)
def test_a_section_that_does_not_fit_the_sources_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        space(**keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"kind": "piecewise", "method": "ties"}, "is for `kind: parameter` or `joint`"),
        ({"kind": "piecewise", "repeats": 2}, "is for `kind: data_flow` or `joint`"),
        ({"kind": "parameter", "chunks": 4}, "is for `kind: piecewise`"),
        ({"kind": "piecewise", "chunks": 0}, "greater than or equal to 1"),
        ({"kind": "piecewise", "range": (1, 0)}, "low < high"),
        ({"kind": "piecewise", "chromosomes": ("mlp", "mlp")}, "different module groups"),
        ({"kind": "piecewise", "chromosomes": ()}, "different module groups"),
        ({"kind": "piecewise", "chromosomes": ("rest",)}, "attention"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SpaceConfig(**keys)
