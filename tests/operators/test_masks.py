"""The counter-based masks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.operators.kernels.masks import keep_mask, mask_key

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


def test_the_oracle_is_splitmix64() -> None:
    """The published first outputs for the seed 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=50, deadline=None)
@given(key=keys, density=st.floats(0, 1))
def test_masks_are_the_published_generator(key: int, density: float) -> None:
    expected = [(word >> 11) / 2**53 < density for word in splitmix64(key, 50)]
    assert keep_mask(50, key, density).tolist() == expected


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


def test_seeds_names_and_sources_have_independent_masks() -> None:
    keys = [mask_key(0, "p", "a"), mask_key(1, "p", "a"), mask_key(0, "q", "a"), mask_key(0, "p", "b")]
    assert len(set(keys)) == 4
    masks = torch.stack([keep_mask(100_000, key, 0.5) for key in keys]).double()
    correlation = torch.corrcoef(masks) - torch.eye(4, dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / 100_000**0.5
