"""Individuals that are vectors in memory: crossed as the pieces are, mutated, and made again from their lineage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.operators.noise import noise
from evomerge.recipe import SourceConfig
from evomerge.spaces import SpaceConfig
from evomerge.spaces.breeding import Angle
from evomerge.spaces.grams import Grams
from evomerge.spaces.pieces import Pieces
from evomerge.spaces.piecewise import WHOLE, PiecewiseSpace
from evomerge.spaces.vectors import VectorIndividual, VectorSpace

SIZE = 300
VECTORS = np.random.default_rng(0).standard_normal((3, SIZE)).astype(np.float32)


def materialise(pieces: Pieces) -> NDArray[np.float32]:
    lengths = np.diff(pieces.ends, prepend=0)
    mixed = np.repeat(pieces.weights, lengths, axis=0).T * VECTORS.astype(np.float64)
    noises = [
        np.repeat(row, lengths) * noise(seed, 0, SIZE) for row, seed in zip(pieces.scales.T, pieces.seeds, strict=True)
    ]
    return (mixed.sum(axis=0) + sum(noises, np.zeros(SIZE))).astype(np.float32)


def piecewise() -> PiecewiseSpace:
    aliases = ("one", "two", "three")
    grams = Grams.of_vectors(aliases, {WHOLE: list(VECTORS)})
    sources = {alias: SourceConfig(model=f"org/{alias}") for alias in aliases}
    return PiecewiseSpace(SpaceConfig(kind="piecewise", chunks=4), grams, sources=sources, dtype="float32")


@pytest.fixture
def space() -> VectorSpace:
    return VectorSpace(piecewise(), materialise)


def evolve(space: VectorSpace, steps: int, *, scale: float, seed: int = 0) -> VectorIndividual:
    rng = np.random.default_rng(seed)
    pool = list(space.founders())
    for step in range(steps):
        first, second = (pool[-1 - int(rng.integers(min(len(pool), 10)))] for _ in range(2))
        angle: Angle = "part" if step % 2 else "whole"
        child = space.cross(first, second, splits=[int(rng.integers(SIZE + 1))], mix=float(rng.random()), angle=angle)
        pool.append(space.mutate(child, seed=step, scale=scale) if scale else child)
    return pool[-1]


def slerp(a: NDArray[np.float64], b: NDArray[np.float64], mix: float, whole: tuple[NDArray[np.float64], ...]) -> object:
    omega = np.arccos(np.clip(whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1]), -1, 1))
    return (np.sin((1 - mix) * omega) * a + np.sin(mix * omega) * b) / np.sin(omega)


@pytest.mark.parametrize("angle", ["whole", "part"])
@settings(deadline=None)
@given(split=st.integers(0, SIZE), mix=st.floats(0, 1))
def test_crossing_is_spherical_mixing_before_and_after_the_split(angle: Angle, split: int, mix: float) -> None:
    space = VectorSpace(piecewise(), materialise)
    first, second, _ = space.founders()
    child = space.cross(first, second, splits=[split], mix=mix, angle=angle).weights
    a, b = VECTORS[:2].astype(np.float64)
    for part, ratio in ((slice(split), mix), (slice(split, None), 1 - mix)):
        if len(a[part]) > 1:
            expected = slerp(a[part], b[part], ratio, (a, b) if angle == "whole" else (a[part], b[part]))
            np.testing.assert_allclose(child[part], expected, atol=2e-5)


def test_without_mutation_the_children_are_those_of_the_piecewise_space(space: VectorSpace) -> None:
    pieces = piecewise()
    vectors, others = list(space.founders()), list(pieces.founders())
    rng = np.random.default_rng(1)
    for _ in range(60):
        one, two = (int(rng.integers(len(vectors))) for _ in range(2))
        how = {"splits": [int(rng.integers(SIZE + 1))], "mix": float(rng.random()), "angle": "whole"}
        vectors.append(space.cross(vectors[one], vectors[two], **how))  # type: ignore[arg-type]
        others.append(pieces.cross(others[one], others[two], **how))  # type: ignore[arg-type]
    for vector, other in zip(vectors, others, strict=True):
        np.testing.assert_allclose(vector.weights, materialise(other), atol=1e-4)


def test_a_mutation_adds_the_noise_of_its_seed(space: VectorSpace) -> None:
    founder = space.founders()[0]
    child = space.mutate(founder, seed=7, scale=0.5)
    np.testing.assert_allclose(child.weights, VECTORS[0] + 0.5 * noise(7, 0, SIZE), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(space.mutate(founder, seed=7, scale=0.5).weights, child.weights)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_a_lineage_gives_the_same_weights_again_bit_by_bit(space: VectorSpace, scale: float) -> None:
    last = evolve(space, 200, scale=scale)
    np.testing.assert_array_equal(space.rebuild(last.lineage), last.weights)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_the_recipe_of_an_individual_gives_its_weights(space: VectorSpace, scale: float) -> None:
    last = evolve(space, 40, scale=scale)
    recipe = space.decode(space.genome(last))
    again = space.individual(space.encode(recipe))
    np.testing.assert_allclose(again.weights, last.weights, atol=1e-4)
    assert len(space.pieces(last).seeds) > 10 if scale else not space.pieces(last).seeds


def test_a_long_lineage_is_followed_without_recursion(space: VectorSpace) -> None:
    individual = space.founders()[0]
    for step in range(3000):
        individual = space.mutate(individual, seed=step, scale=0.01)
    np.testing.assert_array_equal(space.rebuild(individual.lineage), individual.weights)


def test_numbers_are_individuals_too(space: VectorSpace) -> None:
    assert space.dimensions == piecewise().dimensions
    founder = space.individual(space.start)
    np.testing.assert_allclose(founder.weights, VECTORS.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(space.rebuild(founder.lineage), founder.weights)


def test_the_nearest_numbers_of_an_individual_are_those_of_its_pieces(space: VectorSpace) -> None:
    child = evolve(space, 5, scale=0.1)
    pieces = piecewise()
    expected = pieces.numeric(pieces.genome(space.pieces(child)))
    assert space.numeric(space.genome(child)) == expected
    assert space.numeric(expected) == expected


def test_a_genome_holds_its_individual(space: VectorSpace) -> None:
    child = evolve(space, 3, scale=0.1)
    weights = child.weights.copy()
    genome = space.genome(child)
    assert genome == ("vector", child.number)
    del child
    np.testing.assert_array_equal(space.individual(genome).weights, weights)


@pytest.mark.parametrize("genome", [(), ("vector",), ("vector", 3), ("vector", "x"), (0.5,)])
def test_a_genome_that_was_written_down_is_refused(space: VectorSpace, genome: tuple[object, ...]) -> None:
    for read in (space.individual, space.decode, space.numeric):
        with pytest.raises(ConfigError):
            read(genome)  # type: ignore[arg-type]


def test_weights_are_read_only_and_splits_are_checked(space: VectorSpace) -> None:
    first, second, _ = space.founders()
    with pytest.raises(ValueError, match="read-only"):
        first.weights[0] = 0.0
    for splits in ([SIZE + 1], [-1], [], [1, 2]):
        with pytest.raises(ValueError, match=rf"one split point in \[0, {SIZE}\]"):
            space.cross(first, second, splits=splits, mix=0.5, angle="whole")
