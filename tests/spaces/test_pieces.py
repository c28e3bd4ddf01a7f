from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.spaces.breeding import Angle
from evomerge.spaces.grams import Grams
from evomerge.spaces.pieces import OPPOSITE, Pieces, cross, founders, mutate, simplified, slerp

Vector = NDArray[np.float64]
SIZES = {"attention": 40, "mlp": 1, "rest": 23}


def models(count: int, seed: int = 0) -> tuple[Grams, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, sum(SIZES.values()))).astype(np.float32)
    cuts = np.cumsum([0, *SIZES.values()])
    named = {name: list(vectors[:, cuts[i] : cuts[i + 1]]) for i, name in enumerate(SIZES)}
    return Grams.of_vectors([f"s{index}" for index in range(count)], named), vectors.astype(np.float64)


def weights(grams: Grams, vectors: NDArray[np.float64], individual: Pieces) -> Vector:
    """Return what an individual is, noises left out."""
    lengths = np.diff(grams.weights_before(individual.ends), prepend=0)
    return np.einsum("dk,kd->d", individual.weights.repeat(lengths, axis=0), vectors)


def mixed(one: Vector, two: Vector, mix: float, angle_of: tuple[Vector, Vector]) -> Vector:
    """Slerp by its definition, with the angle between two vectors."""
    a, b = angle_of
    omega = math.acos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    if math.sin(omega) <= (1e-6 if a @ b > 0 else OPPOSITE):
        return (1 - mix) * one + mix * two
    return (math.sin((1 - mix) * omega) * one + math.sin(mix * omega) * two) / math.sin(omega)


def dense_cross(one: Vector, two: Vector, splits: Sequence[int], mix: float, angle: Angle) -> Vector:
    child = np.empty_like(one)
    begin = 0
    for size, split in zip(SIZES.values(), splits, strict=True):
        for part, ratio in ((slice(begin, begin + split), mix), (slice(begin + split, begin + size), 1 - mix)):
            if part.start < part.stop:
                whole = (one, two) if angle == "whole" else (one[part], two[part])
                child[part] = mixed(one[part], two[part], ratio, whole)
        begin += size
    return child


SPLITS = st.tuples(*(st.integers(0, size) for size in SIZES.values()))
ANGLES: tuple[Angle, Angle] = ("whole", "part")


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 4), st.lists(st.tuples(SPLITS, st.floats(0, 1)), min_size=1, max_size=6), st.sampled_from(ANGLES))
def test_crossing_pieces_is_crossing_weights(
    count: int, steps: list[tuple[tuple[int, ...], float]], angle: Angle
) -> None:
    grams, vectors = models(count)
    archive = list(founders(grams))
    dense = [row.copy() for row in vectors]
    for number, (splits, mix) in enumerate(steps):
        one, two = number % len(archive), (number + 1) % len(archive)
        archive.append(cross(grams, archive[one], archive[two], splits=splits, mix=mix, angle=angle))
        dense.append(dense_cross(dense[one], dense[two], splits, mix, angle))
        np.testing.assert_allclose(weights(grams, vectors, archive[-1]), dense[-1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("angle", ANGLES)
def test_the_ends_of_the_mix_are_the_parents_bit_by_bit(angle: Angle) -> None:
    grams, _ = models(3)
    one, two, three = founders(grams)
    parent = cross(grams, one, two, splits=(7, 0, 20), mix=0.3, angle=angle)
    whole = tuple(SIZES.values())
    assert cross(grams, parent, three, splits=whole, mix=0.0, angle=angle) == parent
    assert cross(grams, three, parent, splits=whole, mix=1.0, angle=angle) == parent
    assert cross(grams, parent, three, splits=(0, 0, 0), mix=1.0, angle=angle) == parent
    spliced = cross(grams, one, two, splits=(10, 1, 0), mix=0.0, angle=angle)
    assert spliced.ends.tolist() == [10, 40, 41, 64]
    assert spliced.weights.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("angle", ANGLES)
def test_a_child_of_one_parent_twice_is_that_parent_to_rounding(angle: Angle) -> None:
    grams, _ = models(2)
    child = cross(grams, *founders(grams), splits=(5, 1, 9), mix=0.4, angle=angle)
    again = cross(grams, child, child, splits=(20, 0, 3), mix=0.7, angle=angle)
    place = np.searchsorted(child.ends, again.ends)
    np.testing.assert_allclose(again.weights, child.weights[place], rtol=1e-15)


def test_parallel_parents_and_zero_ones_are_mixed_linearly() -> None:
    assert slerp((1.0, 4.0, 2.0), 0.25) == (0.75, 0.25)
    assert slerp((1.0, 1.0, -1.0), 0.25) == (0.75, 0.25)
    assert slerp((0.0, 1.0, 0.0), 0.25) == (0.75, 0.25)
    assert slerp((1.0, 1.0, 0.0), 0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))


def test_neighbours_that_agree_are_joined_within_a_chromosome_alone() -> None:
    grams, _ = models(2)
    ends = np.array([10, 20, 40, 41, 50, 64])
    found = simplified(grams, ends, np.array([[1.0, 1, 0, 0, 0, 0], [0.0, 0, 1, 1, 1, 1]]))
    assert found.ends.tolist() == [20, 40, 41, 64]
    assert not found.ends.flags.writeable
    assert not found.coefficients.flags.writeable


@pytest.mark.parametrize(
    ("splits", "text"), [((1, 1), "for each of 3"), ((41, 0, 0), r"in \[0, 40\] of attention"), ((0, -1, 0), "got -1")]
)
def test_split_points_outside_of_their_chromosome_are_refused(splits: tuple[int, ...], text: str) -> None:
    grams, _ = models(2)
    with pytest.raises(ValueError, match=text):
        cross(grams, *founders(grams), splits=splits, mix=0.5, angle="whole")


class TestNoise:
    def test_a_mutation_is_a_seed_with_its_scale_everywhere_and_adds_up(self) -> None:
        grams, _ = models(2)
        one = founders(grams)[0]
        twice = mutate(mutate(mutate(one, seed=9, scale=0.1), seed=2, scale=0.3), seed=9, scale=0.2)
        assert twice.seeds == (2, 9)
        np.testing.assert_allclose(twice.scales, np.tile([0.3, 0.1 + 0.2], (3, 1)))
        assert twice.weights.tolist() == one.weights.tolist()
        assert mutate(one, seed=5, scale=0.0) == one

    def test_angles_take_noise_as_orthogonal_with_one_squared_length_a_weight(self) -> None:
        grams, vectors = models(2)
        one, two = founders(grams)
        child = cross(
            grams,
            mutate(one, seed=1, scale=0.5),
            mutate(two, seed=2, scale=0.25),
            splits=(40, 1, 23),
            mix=0.3,
            angle="whole",
        )
        squares = (vectors[0] @ vectors[0] + 64 * 0.25, vectors[1] @ vectors[1] + 64 * 0.0625)
        a, b = slerp((*squares, vectors[0] @ vectors[1]), 0.3)
        np.testing.assert_allclose(child.weights, np.tile([a, b], (3, 1)))
        np.testing.assert_allclose(child.scales, np.tile([a * 0.5, b * 0.25], (3, 1)))

    def test_noise_that_no_weight_can_show_is_dropped(self) -> None:
        grams, _ = models(2)
        one, two = founders(grams)
        faint = mutate(mutate(one, seed=1, scale=1e-14), seed=2, scale=0.1)
        assert cross(grams, faint, two, splits=(3, 1, 2), mix=0.5, angle="whole").seeds == (2,)

    @pytest.mark.parametrize(("seed", "scale"), [(-1, 0.1), (2**64, 0.1), (0, math.inf), (0, math.nan)])
    def test_seeds_and_scales_out_of_range_are_refused(self, seed: int, scale: float) -> None:
        grams, _ = models(2)
        with pytest.raises(ValueError, match="expected a seed"):
            mutate(founders(grams)[0], seed=seed, scale=scale)
