"""The counter-based masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.operators.kernels.masks import BLOCK, drop_entries, keep_mask, mask_key, uniform

keys = st.integers(0, 2**64 - 1)
M = 2**64


def splitmix64(state: int, count: int) -> list[int]:
    """Steele, Lea and Flood 2014, in unbounded integers."""
    words = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % M
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % M
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % M
        words.append(z ^ (z >> 31))
    return words


def signed(word: int) -> int:
    return (word + 2**31) % 2**32 - 2**31


def number(key: int, place: int) -> float:
    """The uniform number of one element as the module's text defines it, in unbounded integers."""
    block_key = splitmix64(key, place // BLOCK + 1)[-1]
    x = signed(0x9E3779B1 * (place % BLOCK) + block_key)
    x = signed((x ^ (x >> 15)) * 0x7FEB352D + (block_key >> 32))
    x = signed((x ^ (x >> 16)) * 0x846CA68B)
    return ((x >> 1) + 2**30) / 2**31


def test_the_oracle_is_splitmix64() -> None:
    """The published first outputs for the seed 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=50, deadline=None)
@given(key=keys, density=st.floats(0, 1), offset=st.sampled_from([0, 3, BLOCK - 20, 2 * BLOCK - 1]))
def test_masks_are_what_the_definition_says(key: int, density: float, offset: int) -> None:
    """Within a block and over the boundary of two."""
    numbers = [number(key, offset + place) for place in range(40)]
    assert uniform(40, key, offset=offset).tolist() == numbers
    assert keep_mask(40, key, density, offset=offset).tolist() == [u < density for u in numbers]


@settings(max_examples=30, deadline=None)
@given(key=keys, density=st.floats(0, 1), offset=st.integers(0, 2 * BLOCK))
def test_dropping_keeps_what_the_mask_keeps(key: int, density: float, offset: int) -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(1))
    expected = torch.where(keep_mask(300, key, density, offset=offset), values, 0.0)
    assert torch.equal(drop_entries(values.clone(), key, density, offset=offset), expected)


@settings(max_examples=50, deadline=None)
@given(key=keys, low=st.floats(0, 1), high=st.floats(0, 1))
def test_masks_nest_in_the_density(key: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert not (keep_mask(200, key, low) & ~keep_mask(200, key, high)).any()


def test_density_one_keeps_all_and_zero_none() -> None:
    assert keep_mask(100_000, 5, 1.0).all()
    assert not keep_mask(100_000, 5, 0.0).any()


def test_shards_are_parts_of_the_whole() -> None:
    """Across the width in which masks are made, too."""
    whole = keep_mask(200_000, 7, 0.4)
    parts = [keep_mask(stop - start, 7, 0.4, offset=start) for start, stop in [(0, 3), (3, 90_001), (90_001, 200_000)]]
    assert torch.equal(torch.cat(parts), whole)


def test_the_share_kept_is_the_density_and_neighbours_are_independent() -> None:
    """Within 4.5 standard errors, over 400,000 draws."""
    size = 400_000
    for density in (0.05, 0.3, 0.9):
        mask = keep_mask(size, mask_key(0, "p", "a"), density).double()
        error = (density * (1 - density) / size) ** 0.5
        assert abs(float(mask.mean()) - density) < 4.5 * error
        for lag in (1, 2, 64):
            both = float((mask[lag:] * mask[:-lag]).mean())
            assert abs(both - density**2) < 4.5 * (density**2 * (1 - density**2) / size) ** 0.5 * 2


@pytest.mark.parametrize("density", [0.5, 0.02])
def test_no_lag_and_no_frequency_stands_out(density: float) -> None:
    """Autocorrelation at all lags and the spectrum of 64 blocks: largest of 100,000 normal numbers, chance 1e-6."""
    mask = keep_mask(64 * BLOCK, mask_key(3, "p", "a"), density).view(64, BLOCK).numpy()
    signal = (mask - density) / (density * (1 - density)) ** 0.5
    power = np.abs(np.fft.rfft(signal, 2 * BLOCK, axis=1)) ** 2
    lags = np.arange(1, BLOCK - 5000)
    correlation = np.fft.irfft(power.sum(0))[lags] / np.sqrt(64.0 * (BLOCK - lags))
    assert np.abs(correlation).max() < 6.7
    spectrum = np.abs(np.fft.rfft(signal.reshape(-1))[1:]) ** 2 / signal.size
    assert spectrum.max() < np.log(len(spectrum)) + np.log(1e6)


def test_numbers_are_uniform_and_so_are_neighbours() -> None:
    """χ² over 4096 cells, of single numbers, and of pairs of neighbours."""
    numbers = uniform(1 << 21, mask_key(0, "p", "b")).numpy()
    for counts in (
        np.histogram(numbers, 4096, (0, 1))[0],
        np.histogram2d(numbers[0::2], numbers[1::2], 64, [[0, 1], [0, 1]])[0],
    ):
        expected = counts.sum() / 4096
        assert abs(((counts - expected) ** 2 / expected).sum() - 4095) < 5 * (2 * 4095) ** 0.5


def test_blocks_have_independent_masks() -> None:
    masks = keep_mask(200 * BLOCK, 11, 0.5).view(200, BLOCK).double().mul_(2).sub_(1)
    correlation = (masks @ masks.T / BLOCK - torch.eye(200, dtype=torch.float64)).abs()
    assert correlation.max() < 6 / BLOCK**0.5


def test_seeds_names_and_sources_have_independent_masks() -> None:
    keys = [mask_key(0, "p", "a"), mask_key(1, "p", "a"), mask_key(0, "q", "a"), mask_key(0, "p", "b")]
    assert len(set(keys)) == 4
    masks = torch.stack([keep_mask(100_000, key, 0.5) for key in keys]).double()
    correlation = torch.corrcoef(masks) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / 100_000**0.5
