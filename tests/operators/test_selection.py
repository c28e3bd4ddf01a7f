"""Selecting the largest magnitudes, against a full sort."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators.kernels import selection
from evomerge.operators.kernels.inputs import Flat, TaskVector
from evomerge.operators.kernels.selection import (
    Bracket,
    boundary_bin,
    kept_count,
    kth_largest_magnitude,
    magnitude_histogram,
    pattern_value,
    refined_histogram,
    row_thresholds,
    stream_threshold,
    task_thresholds,
)
from evomerge.operators.kernels.thinning import trim

LARGE = (1 << 18) + 70_017
"""Beyond the size up to which everything is selected from at once; no whole number of spans."""
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


def large(kind: str, rng: np.random.Generator) -> np.ndarray:
    made: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: rng.standard_normal(LARGE),
        "bfloat16": lambda: torch.from_numpy(rng.standard_normal(LARGE)).bfloat16().float().numpy(),
        "constant": lambda: np.full(LARGE, -0.1),
        "zeros": lambda: np.zeros(LARGE),
        "subnormal": lambda: rng.integers(-3, 4, LARGE) * 1.4e-45,
        "wide": lambda: np.exp(rng.uniform(-80, 80, LARGE)),
        "two values": lambda: rng.integers(0, 2, LARGE) - 3.0,
        "few": lambda: rng.integers(-4, 5, LARGE) / 8,
        "mostly zero": lambda: rng.standard_normal(LARGE) * (rng.random(LARGE) < 0.01),
        "sorted": lambda: np.sort(rng.standard_normal(LARGE)),
        "infinite": lambda: np.where(rng.random(LARGE) < 0.3, -np.inf, rng.standard_normal(LARGE)),
    }
    return made[kind]().astype(np.float32)


KINDS = [
    "normal", "bfloat16", "constant", "zeros", "subnormal", "wide", "two values", "few", "mostly zero", "sorted",
    "infinite",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors_are_selected_from_exactly(kind: str) -> None:
    """With every rank that is special: the first, the last, beside a boundary of equal entries, and in between."""
    values = large(kind, np.random.default_rng(0))
    sizes = np.sort(np.abs(values))[::-1]
    edges = np.flatnonzero(sizes[1:] != sizes[:-1])[:3]
    ranks = {1, 2, LARGE - 1, LARGE, *(kept_count(LARGE, share) for share in (1e-5, 0.2, 0.5, 0.99))}
    ranks |= {int(edge) + step for edge in edges for step in (0, 1, 2)} - {0}
    for k in sorted(ranks):
        assert kth_largest_magnitude(torch.from_numpy(values), k) == sizes[k - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_task_vectors_are_selected_from_together_as_alone(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    base, first, second = (torch.from_numpy(rng.standard_normal(LARGE)).to(dtype) for _ in range(3))
    tuned = {0: Flat(first), 2: Flat(second)}
    found = task_thresholds(tuned, Flat(base), {0: 0.3, 2: 0.9})
    for index, density in ((0, 0.3), (2, 0.9)):
        whole = TaskVector(tuned[index], Flat(base))[:].numpy()
        assert found[index] == by_sorting(whole, kept_count(LARGE, density))


def test_thresholds_of_nothing_are_infinite() -> None:
    nothing = Flat(torch.zeros(0))
    assert task_thresholds({0: nothing}, nothing, {0: 0.5}) == {0: float("inf")}


@pytest.mark.parametrize("kind", ["normal", "two values"])
def test_a_sample_that_misleads_costs_time_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sample sees one place only, the histograms decide."""
    values = large(kind, np.random.default_rng(2))
    monkeypatch.setattr(selection, "_runs", lambda count: torch.zeros(1 << 12, dtype=torch.int64))
    k = kept_count(LARGE, 0.5)
    assert Bracket(Flat(torch.from_numpy(values)), k).kth_largest() is None
    assert kth_largest_magnitude(torch.from_numpy(values), k) == by_sorting(values, k)


@pytest.mark.parametrize("rows", [False, True])
def test_the_bracket_nearly_always_holds_the_rank(rows: bool) -> None:
    """So that one pass is the rule, also where neighbours are of one size."""
    rng = np.random.default_rng(3)
    values = torch.from_numpy(large("normal", rng))
    if rows:
        values *= torch.from_numpy(np.repeat(np.exp(rng.normal(0, 2, LARGE // 512 + 1)), 512)[:LARGE]).float()
    for share in rng.uniform(0.001, 1, 30):
        bracket = Bracket(Flat(values), kept_count(LARGE, float(share)))
        bracket.count(values.abs())
        assert bracket.kth_largest() is not None


@settings(max_examples=60, deadline=None)
@given(values=floats, place=st.integers(0, 59))
def test_trimming_keeps_what_reaches_the_limit(values: np.ndarray, place: int) -> None:
    """Also where the limit is zero, subnormal, the largest float or infinite."""
    limit = np.abs(values[place % len(values)])
    expected = np.where(np.abs(values) >= limit, values, np.float32(0))
    np.testing.assert_array_equal(trim(torch.from_numpy(values.copy()), float(limit)).numpy(), expected)


@pytest.mark.parametrize("k", [0, 6])
def test_no_rank_outside_of_a_tensor(k: int) -> None:
    with pytest.raises(ValueError, match="rank from 1 to 5"):
        kth_largest_magnitude(torch.ones(5), k)


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
