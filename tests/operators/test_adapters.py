"""Evo-Merging of LoRA factors against NumPy, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import SourceError
from evomerge.operators.kernels.low_rank import LowRank
from tests.operators.spectra import Matrix, draw, relative, run


def update(seed: int, *, rank: int = 3, scale: float = 2.0, transposed: bool = False) -> LowRank:
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((rank, 7)), rng.standard_normal((5, rank))
    return LowRank(
        first=torch.from_numpy(first).float(),
        second=torch.from_numpy(second).float(),
        scale=scale,
        transposed=transposed,
    )


def dense(found: LowRank) -> Matrix:
    product: Matrix = (found.scale * found.second.double() @ found.first.double()).numpy()
    return product.T if found.transposed else product


def merge(updates: list[LowRank], base: object = None, **params: Any) -> Matrix:
    told = {"low_rank": lambda index: updates[index]}
    return run("evo_merging", [dense(found) for found in updates], base, context=told, **params)


def expected(updates: list[LowRank], weights: list[float], densities: list[float]) -> Matrix:
    first, second = np.zeros((3, 7)), np.zeros((5, 3))
    for found, weight, density in zip(updates, weights, densities, strict=True):
        factor = found.first.double().numpy()
        kept = max(1, round(density * factor.size)) if density else 0
        limit = np.sort(np.abs(factor).ravel())[-kept] if kept else np.inf
        first += weight * np.where(np.abs(factor) >= limit, factor, 0.0)
        second += weight * found.scale * found.second.double().numpy()
    product: Matrix = second @ first
    return product


@given(
    weights=st.lists(st.floats(-1.5, 1.5).filter(lambda value: abs(value) > 1e-3), min_size=3, max_size=3),
    densities=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
)
def test_both_factors_are_summed_and_the_first_ones_are_sparse(weights: list[float], densities: list[float]) -> None:
    updates = [update(0), update(1, scale=0.5), update(2)]
    wanted = expected(updates, weights, densities)
    assert np.allclose(merge(updates, weight=weights, density=densities), wanted, atol=1e-5)


def test_one_adapter_by_hand() -> None:
    """β = 1/2 gives a quarter of it, and so does -1/2."""
    one = update(3)
    assert np.allclose(merge([one]), dense(one), atol=1e-6)
    for weight in (0.5, -0.5):
        assert np.allclose(merge([one], weight=weight), dense(one) / 4, atol=1e-6)


def test_the_opposite_of_all_weights_gives_the_same_bits() -> None:
    updates = [update(4), update(5)]
    assert np.array_equal(merge(updates, weight=[0.3, -0.8]), merge(updates, weight=[-0.3, 0.8]))


def test_order_and_sources_of_weight_0_do_not_matter() -> None:
    updates = [update(6), update(7), update(8)]
    params = {"weight": [0.3, -0.8, 0.0], "density": [0.5, 0.7, 0.9]}
    two = merge(updates[:2], weight=[0.3, -0.8], density=[0.5, 0.7])
    assert np.array_equal(merge(updates, **params), two)


def test_density_0_leaves_an_adapter_its_second_factor() -> None:
    updates = [update(9), update(10)]
    merged = merge(updates, density=[0.0, 1.0])
    second = sum(2.0 * found.second.double().numpy() for found in updates)
    assert relative(merged, second @ updates[1].first.double().numpy()) < 1e-5


def test_equal_entries_have_equal_fates() -> None:
    level = LowRank(first=torch.ones(1, 4), second=torch.ones(2, 1), scale=1.0)
    assert np.array_equal(merge([level], density=0.25), np.ones((2, 4)))


def test_a_matrix_stored_inputs_first() -> None:
    updates = [update(11, transposed=True), update(12, transposed=True)]
    plain = [update(11), update(12)]
    assert relative(merge(updates, density=0.5).T, merge(plain, density=0.5)) < 1e-12


def test_without_a_weight_the_base_stays_bit_by_bit() -> None:
    base = 1e3 * draw(13, 5, 7, count=1)[0]
    assert np.array_equal(merge([update(14), update(15)], base, weight=0.0), base.astype(np.float32))


def test_what_has_no_factors_is_summed() -> None:
    tasks = draw(16, 7, count=2)
    assert relative(run("evo_merging", tasks, weight=[0.5, -0.2]), 0.5 * tasks[0] - 0.2 * tasks[1]) < 1e-6


def test_an_adapter_that_leaves_the_tensor_alone_adds_nothing() -> None:
    one = update(17)
    told = {"low_rank": lambda index: one if index == 0 else None}
    merged = run("evo_merging", [dense(one), np.zeros((5, 7))], context=told, weight=[0.5, 0.9])
    assert relative(merged, dense(one) / 4) < 1e-5


def test_different_ranks_are_refused_in_one_sentence() -> None:
    with pytest.raises(SourceError, match=r"p: evo_merging adds the factors .* ranks 2, 3; use adapters of one rank"):
        merge([update(18), update(19, rank=2)])


def test_factors_and_a_whole_tensor_are_refused() -> None:
    one = update(20)
    told = {"low_rank": lambda index: one if index == 0 else None}
    with pytest.raises(SourceError, match="one adapter has factors of this tensor and another replaces it as a whole"):
        run("evo_merging", [dense(one), dense(update(21))], context=told)
