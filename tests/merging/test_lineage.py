"""Individuals are recipes: a materialised lineage is what crossing the weights themselves, step by step, gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from evomerge.merging import Sources, materialise, open_sources, plan
from evomerge.merging.flat import flat_index, flat_parts
from evomerge.merging.grams import block_grams
from evomerge.operators import block_grams as grid
from evomerge.operators.noise import noise
from evomerge.recipe import Chromosome, Group, Recipe
from evomerge.spaces import Grams, PiecewiseSpace, SpaceConfig
from evomerge.spaces.breeding import Angle
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, write_checkpoint

STEPS, ARCHIVE = 200, 12
Vector = NDArray[np.floating[Any]]


def write_siblings(folder: Path, count: int, cosine: float | None) -> Recipe:
    """Write models with that cosine to each other (None: random ones) and return a recipe over them."""
    config = tiny_llama_config()
    base = tiny_llama_tensors(config)
    for number in range(count):
        own = tiny_llama_tensors(config, seed=1 + number)
        if cosine is not None:
            spread = math.sqrt(1.0 / cosine - 1.0)
            own = {
                name: base[name]
                + spread * 0.2 * torch.randn(own[name].shape, generator=torch.Generator().manual_seed(number))
                for name in own
            }
        write_checkpoint(folder / f"s{number}", config, own)
    data = {"recipe": 1, "sources": {f"s{number}": {"model": f"s{number}"} for number in range(count)}}
    return Recipe.from_mapping({**data, "blend": {"method": "linear"}})


@dataclass
class Weights:
    """An individual as its weights, and the noise in them apart: a factor a weight for each seed."""

    sources: Vector
    noises: dict[int, Vector] = field(default_factory=dict)

    def part(self, where: Any) -> Weights:
        return Weights(self.sources[where], {seed: factors[where] for seed, factors in self.noises.items()})

    def dot(self, other: Weights) -> float:
        own = float(np.dot(self.sources.astype(np.float64), other.sources.astype(np.float64)))
        return own + sum(
            float(self.noises[seed] @ other.noises[seed]) for seed in self.noises.keys() & other.noises.keys()
        )

    def times(self, factor: float) -> Weights:
        scale = self.sources.dtype.type(factor)
        return Weights(self.sources * scale, {seed: one * factor for seed, one in self.noises.items()})

    def plus(self, other: Weights) -> Weights:
        seeds = self.noises.keys() | other.noises.keys()
        zero = np.zeros(len(self.sources))
        noises = {seed: self.noises.get(seed, zero) + other.noises.get(seed, zero) for seed in seeds}
        return Weights(self.sources + other.sources, noises)

    def total(self) -> Vector:
        size = len(self.sources)
        return self.sources + sum(
            (factors * noise(seed, 0, size) for seed, factors in self.noises.items()), np.zeros(size)
        )


def slerp(one: Weights, two: Weights, mix: float, angle: float) -> Weights:
    sine = math.sin(angle)
    if sine <= 1e-6:
        return one.times(1 - mix).plus(two.times(mix))
    return one.times(math.sin((1 - mix) * angle) / sine).plus(two.times(math.sin(mix * angle) / sine))


def angle_between(one: Weights, two: Weights) -> float:
    return math.acos(max(-1.0, min(1.0, one.dot(two) / math.sqrt(one.dot(one) * two.dot(two)))))


def cross(one: Weights, two: Weights, parts: list[tuple[NDArray[np.intp], float]], angle: Angle) -> Weights:
    """Cross weights by the definition; parts are flat indices, each with its mix."""
    child = Weights(
        np.empty_like(one.sources), {seed: np.zeros(len(one.sources)) for seed in one.noises.keys() | two.noises.keys()}
    )
    whole = angle_between(one, two)
    for where, mix in parts:
        a, b = one.part(where), two.part(where)
        made = slerp(a, b, mix, whole if angle == "whole" or not len(where) else angle_between(a, b))
        child.sources[where] = made.sources
        for seed, factors in made.noises.items():
            child.noises[seed][where] = factors
    return child


@dataclass(frozen=True)
class Case:
    """Which lineage is made."""

    sources: int
    cosine: float | None
    chromosomes: tuple[Group, ...]
    angle: Angle
    mutations: int = 0
    positions: int = 65_536


CASES = [
    Case(2, 0.99995, (), "whole"),
    Case(2, 0.99995, ("attention", "mlp"), "part"),
    Case(4, 0.99995, ("attention", "embeddings"), "whole"),
    Case(4, 0.99995, (), "part"),
    Case(3, None, ("mlp",), "part"),
    Case(2, None, (), "whole", mutations=8),
    Case(4, 0.99995, ("mlp", "head"), "part", mutations=8),
    Case(2, None, ("mlp",), "whole", positions=300),
]


def breeding_space(template: Recipe, sources: Sources, case: Case) -> PiecewiseSpace:
    aliases = tuple(template.sources)
    blocks = block_grams(sources, aliases, case.chromosomes)
    grams = Grams.of_blocks(aliases, {name if case.chromosomes else "whole": one for name, one in blocks.items()})
    config = SpaceConfig(kind="piecewise", chromosomes=case.chromosomes or "whole")
    return PiecewiseSpace(config, grams, sources=template.sources, dtype="float32")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_lineage_of_200_crossings_is_a_recipe_over_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, dtype: type[np.floating[Any]]
) -> None:
    """In float64 step by step it agrees to one rounding to float32; in float32, to the roundings of the steps."""
    monkeypatch.setattr(grid, "MAX_POSITIONS", case.positions)
    template = write_siblings(tmp_path, case.sources, case.cosine)
    sources = open_sources(template, tmp_path)
    space = breeding_space(template, sources, case)
    index = flat_index(sources.models["s0"])
    where = {
        name: np.concatenate([np.arange(t.start, t.start + t.size) for t in tensors])
        for name, tensors in flat_parts(index, case.chromosomes).items()
    }
    models = [load_file(tmp_path / alias / "model.safetensors") for alias in template.sources]
    recipes = list(space.founders())
    weights = [
        Weights(np.concatenate([model[t.name].reshape(-1).numpy() for t in index]).astype(dtype)) for model in models
    ]
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        one, two = rng.integers(len(recipes), size=2)
        mix, splits = float(rng.random()), [int(rng.integers(part.positions + 1)) for part in space.chromosomes]
        child = space.cross(recipes[one], recipes[two], splits=splits, mix=mix, angle=case.angle)
        dense = cross(weights[one], weights[two], _parts(where, splits, mix), case.angle)
        if case.mutations and step % (STEPS // case.mutations) == 0:
            child = space.mutate(child, seed=step, scale=0.01)
            dense = dense.plus(Weights(np.zeros_like(dense.sources), {step: np.full(len(dense.sources), 0.01)}))
        if len(recipes) >= ARCHIVE:
            drop = int(rng.integers(len(recipes)))
            del recipes[drop], weights[drop]
        recipes.append(child)
        weights.append(dense)
    recipe = space.decode(space.genome(recipes[-1]))
    found = np.concatenate([tensor.reshape(-1).numpy() for _, tensor in materialise(plan(recipe, sources))])
    expected = weights[-1].total()
    assert len(recipes[-1].ends) > 50
    assert bool(recipes[-1].seeds) == bool(case.mutations)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=largest * (4e-7 if dtype is np.float64 else 4e-6))


def _parts(
    where: dict[Chromosome, NDArray[np.intp]], splits: list[int], mix: float
) -> list[tuple[NDArray[np.intp], float]]:
    found = []
    for places, split in zip(where.values(), splits, strict=True):
        cut = min(split * grid.block_size(len(places)), len(places))
        found += [(places[:cut], mix), (places[cut:], 1 - mix)]
    return found


def test_measured_angles_of_noise_are_near_those_that_are_assumed(tmp_path: Path) -> None:
    """Noise is taken as orthogonal to all else, which it is to about one part in the square root of its length."""
    rng = np.random.default_rng(0)
    size = 19_210
    one, two = (Weights(0.01 * rng.normal(size=size), {seed: np.full(size, 0.01)}) for seed in (3, 4))
    measured = float(one.total() @ two.total() / np.linalg.norm(one.total()) / np.linalg.norm(two.total()))
    assert measured == pytest.approx(math.cos(angle_between(one, two)), abs=4 / math.sqrt(size))
