"""Selecting the largest magnitudes, against a full sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators.kernels.selection import (
    SMALL,
    boundary_bin,
    kept_count,
    kth_largest_magnitude,
    magnitude_histogram,
    pattern_value,
    refined_histogram,
    row_thresholds,
    stream_threshold,
)

floats = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False))


def by_sorting(values: np.ndarray, k: int) -> float:
    return float(np.sort(np.abs(values.ravel()))[::-1][k - 1])


@settings(max_examples=60, deadline=None)
@given(values=floats, cut=st.integers(0, 60), density=st.floats(0.001, 1))
def test_streaming_equals_one_sort_whatever_the_parts(values: np.ndarray, cut: int, density: float) -> None:
    """Subnormals, infinities, zeros and many equal values are selected from exactly."""
    whole = torch.from_numpy(values)
    parts = [whole[:cut], whole[cut:]]
    expected = by_sorting(values, max(1, int(density * values.size)))
    assert stream_threshold(lambda: parts, density) == expected


@pytest.mark.parametrize("kind", ["normal", "bfloat16", "constant", "zeros", "wide"])
@pytest.mark.parametrize("share", [1e-5, 0.2, 0.5, 1.0])
def test_large_tensors_are_selected_from_exactly(kind: str, share: float) -> None:
    rng = np.random.default_rng(0)
    size = SMALL * 9 + 17
    values = {
        "normal": rng.standard_normal(size),
        "bfloat16": torch.from_numpy(rng.standard_normal(size)).bfloat16().float().numpy(),
        "constant": np.full(size, -0.1),
        "zeros": np.zeros(size),
        "wide": np.exp(rng.uniform(-80, 80, size)),
    }[kind].astype(np.float32)
    k = kept_count(size, share)
    assert kth_largest_magnitude(torch.from_numpy(values), k) == by_sorting(values, k)


def test_histograms_of_parts_add_up_and_count_every_element() -> None:
    tensor = torch.randn(700, 900, generator=torch.Generator().manual_seed(0))
    whole = magnitude_histogram(tensor)
    assert torch.equal(whole, magnitude_histogram(tensor[:300]) + magnitude_histogram(tensor[300:]))
    assert whole.shape == (32768,)
    assert whole.dtype == torch.int64
    assert int(whole.sum()) == tensor.numel()
    upper, _ = boundary_bin(whole, 1000)
    assert int(refined_histogram(tensor, upper).sum()) == int(whole[upper])
    assert torch.equal(magnitude_histogram(tensor.t()), whole)


def test_the_boundary_bin_gives_the_rank_inside_it() -> None:
    counts = torch.tensor([5, 0, 3, 2])
    assert [boundary_bin(counts, k) for k in (1, 2, 3, 5, 6, 10)] == [
        (3, 1),
        (3, 2),
        (2, 1),
        (2, 3),
        (0, 1),
        (0, 5),
    ]


@pytest.mark.parametrize("k", [0, 11])
def test_a_rank_outside_the_entries_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="rank from 1 to 10"):
        boundary_bin(torch.tensor([5, 0, 3, 2]), k)


def test_pattern_values_are_float32_bits() -> None:
    assert pattern_value(0x3F80, 0) == 1.0
    assert pattern_value(0, 0) == 0.0


def test_the_threshold_of_nothing_is_infinite() -> None:
    assert stream_threshold(lambda: [torch.zeros(0)], 0.5) == float("inf")


def test_rows_are_selected_from_one_by_one() -> None:
    matrix = torch.tensor([[1.0, -4.0, 3.0, 2.0], [0.1, 0.0, 0.0, -0.2]])
    assert row_thresholds(matrix, 0.5).tolist() == [[3.0], [pytest.approx(0.1)]]
    assert row_thresholds(matrix, 0.1).tolist() == [[4.0], [pytest.approx(0.2)]]


@pytest.mark.parametrize(("numel", "density", "kept"), [(4, 0.5, 2), (3, 0.2, 1), (0, 0.5, 0), (7, 1.0, 7)])
def test_at_least_one_entry_is_kept(numel: int, density: float, kept: int) -> None:
    assert kept_count(numel, density) == kept
