from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.operators.noise import noise
from evomerge.seeds import derive


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100_000), st.integers(0, 70_000), st.integers(0, 2**64 - 1))
def test_a_block_of_noise_is_the_same_alone_as_within_a_larger_one(start: int, length: int, seed: int) -> None:
    middle = start + length // 3
    whole = noise(seed, start, start + length)
    assert whole.shape == (length,)
    np.testing.assert_array_equal(
        np.concatenate([noise(seed, start, middle), noise(seed, middle, start + length)]), whole
    )


def word(key: int, place: int) -> int:
    """Word `place` of SplitMix64 in unbounded integers."""
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_noise_is_box_muller_of_splitmix64() -> None:
    uniform = [(word(derive(7, "noise"), place) >> 11) / 2.0**53 for place in range(8)]
    expected = []
    for first, second in zip(uniform[::2], uniform[1::2], strict=True):
        radius = math.sqrt(-2.0 * math.log(1.0 - first))
        expected += [radius * math.cos(2.0 * math.pi * second), radius * math.sin(2.0 * math.pi * second)]
    np.testing.assert_allclose(noise(7, 0, 8), expected, rtol=1e-14)


def test_noise_is_standard_normal_and_independent_between_seeds_and_places() -> None:
    one, other = noise(1, 0, 400_000), noise(2, 0, 400_000)
    for moment, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert np.mean(one**moment) == pytest.approx(expected, abs=0.06)
    assert np.mean(np.abs(one) < 1.0) == pytest.approx(0.6827, abs=0.004)
    assert abs(np.mean(one * other)) < 0.01
    assert abs(np.mean(one[1:] * one[:-1])) < 0.01
