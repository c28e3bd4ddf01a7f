"""What is nearest, in numbers, to an individual that was bred."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe import SourceConfig
from evomerge.search.genomes import numeric_genome
from evomerge.spaces import SpaceConfig
from evomerge.spaces.grams import Grams
from evomerge.spaces.piecewise import PiecewiseSpace
from evomerge.testing.spaces import BoxSpace

SIZES = {"attention": 90, "mlp": 210}


def space_of(chromosomes: dict[str, int], *, chunks: int = 3, sources: int = 3) -> PiecewiseSpace:
    rng = np.random.default_rng(0)
    aliases = tuple("abcd"[:sources])
    grams = Grams.of_vectors(
        aliases,
        {name: [rng.standard_normal(size).astype(np.float32) for _ in aliases] for name, size in chromosomes.items()},
    )
    config = SpaceConfig(kind="piecewise", chunks=chunks)
    return PiecewiseSpace(config, grams, sources={alias: SourceConfig(model=alias) for alias in aliases})


SPACE = space_of(SIZES)
CROSSINGS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 90), st.integers(0, 210), st.floats(0, 1)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(CROSSINGS)
def test_a_chunk_is_the_mean_of_its_weights_mixtures(crossings: list[tuple[int, int, int, int, float]]) -> None:
    """Against the coefficients of every single weight, spread out in float64."""
    individuals = list(SPACE.founders())
    for first, second, *splits, mix in crossings:
        one, other = (individuals[index % len(individuals)] for index in (first, second))
        individuals.append(SPACE.cross(one, other, splits=[int(split) for split in splits], mix=mix, angle="whole"))
    child = individuals[-1]
    every = np.repeat(child.weights, np.diff(child.ends, prepend=0), axis=0)
    chunks = [
        every[start + size * index // 3 : start + size * (index + 1) // 3].mean(axis=0)
        for start, size in ((0, 90), (90, 210))
        for index in range(3)
    ]
    expected = [float(x) for chunk in chunks for x in np.clip(chunk[1:] / chunk.sum(), 0, 1)]
    numbers = SPACE.numeric(SPACE.genome(child))
    assert numbers == pytest.approx(expected, abs=1e-9)
    assert SPACE.numeric(numbers) == numbers


def test_noise_is_left_out() -> None:
    space = space_of({"whole": 200}, sources=2)
    one, other = space.founders()
    child = space.cross(one, other, splits=[70], mix=0.3, angle="whole")
    noisy = space.mutate(child, seed=3, scale=0.1)
    assert space.numeric(space.genome(noisy)) == space.numeric(space.genome(child))


def test_a_space_that_does_not_breed_has_numbers_alone() -> None:
    space = BoxSpace()
    assert numeric_genome(space, space.start) == space.start
