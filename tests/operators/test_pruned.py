"""Breadcrumbs and DELLA, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators import get, load
from evomerge.operators.kernels import cpu
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.masks import keep_mask, mask_key, uniform
from evomerge.operators.kernels.pruned import band, keep_probability

stacks = hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 5), st.integers(1, 8)), elements=st.integers(-9, 9))


def run(method: str, deltas: Sequence[object], *, seed: int = 0, **params: float | bool | str) -> torch.Tensor:
    """Blend task vectors over a base of zeros."""
    aliases = [f"s{index}" for index in range(len(deltas))]
    tensors = [torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    spec = get(method)
    context = Context(name="p", seed=seed, source_ids=tuple(aliases))
    return load(spec)(tensors, torch.zeros_like(tensors[0]), spec.complete(params, aliases), context)


def band_oracle(delta: np.ndarray, density: float, top: float) -> np.ndarray:
    """The band of one vector by a full sort; entries equal to either end of the band stay."""
    order = np.sort(np.abs(delta))[::-1]
    kept = max(1, int(density * delta.size))
    dropped = min(int(top * delta.size), delta.size - kept)
    inside = (np.abs(delta) <= order[dropped]) & (np.abs(delta) >= order[dropped + kept - 1])
    return np.where(inside, delta, 0.0)


def test_the_middle_of_five_magnitudes_is_kept() -> None:
    """By hand: of 5, -4, 3, -2, 1 the largest and the smallest go."""
    assert run("breadcrumbs", [[5.0, -4.0, 3.0, -2.0, 1.0]], density=0.6, top=0.2).tolist() == [0, -4, 3, -2, 0]


@settings(max_examples=60, deadline=None)
@given(
    deltas=stacks,
    density=st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    top=st.sampled_from([0.0, 0.1, 0.3]),
    scope=st.sampled_from(["tensor", "row"]),
)
def test_breadcrumbs_is_the_sum_of_the_bands(deltas: np.ndarray, density: float, top: float, scope: str) -> None:
    rows = deltas.reshape(2, -1, deltas.shape[-1] if scope == "row" else deltas[0].size).astype(np.float64)
    expected = sum(np.stack([band_oracle(row, density, top) for row in delta]) for delta in rows)
    actual = run("breadcrumbs", list(deltas), density=density, top=top, scope=scope)
    assert np.array_equal(actual.numpy().reshape(np.shape(expected)), expected)


def test_keeping_everything_is_task_arithmetic() -> None:
    deltas = [[4.0, -1.0, 2.0, 0.5], [-3.0, 2.0, 2.0, 1.0]]
    expected = run("task_arithmetic", deltas, weight=0.5)
    assert torch.equal(run("breadcrumbs", deltas, weight=0.5, density=1.0, top=0.0), expected)
    assert torch.equal(run("della_linear", deltas, weight=0.5, density=1.0, epsilon=0.0), expected)


def test_without_a_top_the_election_is_that_of_ties() -> None:
    deltas = [[4.0, -1.0, 2.0, 0.0], [-3.0, 2.0, 2.0, 1.0]]
    for normalize in (True, False):
        expected = run("ties", deltas, density=0.5, normalize=normalize)
        assert torch.equal(run("breadcrumbs_ties", deltas, density=0.5, top=0.0, normalize=normalize), expected)


@pytest.mark.parametrize(
    ("count", "density", "top", "expected"),
    [(100, 0.9, 0.01, (2, 91)), (10, 0.9, 0.01, (1, 9)), (10, 1.0, 0.3, (1, 10)), (3, 0.1, 0.5, (2, 2))],
)
def test_the_density_goes_before_what_is_dropped_at_the_top(
    count: int, density: float, top: float, expected: tuple[int, int]
) -> None:
    assert band(count, density, top) == expected


def test_keep_probabilities_rise_with_the_magnitude() -> None:
    """By hand: density 0.5 and epsilon 0.2 give 0.3, 0.5, 0.7; a row of one entry has the density."""
    rows = torch.tensor([[1.0, 2.0, 3.0], [-3.0, 1.0, -2.0]])
    expected = torch.tensor([[0.3, 0.5, 0.7], [0.7, 0.3, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(keep_probability(rows, 0.5, 0.2), expected)
    assert keep_probability(torch.tensor([[2.0]]), 0.4, 0.2).tolist() == [[0.4]]


@given(density=st.floats(0.01, 1.0), epsilon=st.floats(0.0, 0.5), columns=st.integers(1, 20))
def test_probabilities_stay_in_range_and_average_to_the_density(density: float, epsilon: float, columns: int) -> None:
    chance = keep_probability(torch.arange(columns, dtype=torch.float32).view(1, -1), density, epsilon)
    assert float(chance.min()) >= -1e-12
    assert float(chance.max()) <= 1 + 1e-12
    assert float(chance.mean()) == pytest.approx(density)


def test_no_window_is_dare_with_the_same_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "takes", lambda *_: False)  # both by the same operations, for equal rounding
    rng = np.random.default_rng(0)
    deltas = list(rng.standard_normal((2, 30, 40)))
    for rescale in ("inv_keep", "l1", "none"):
        dare = run("dare_linear", deltas, density=0.4, rescale=rescale, seed=3)
        della = run("della_linear", deltas, density=0.4, epsilon=0.0, rescale=rescale, seed=3)
        torch.testing.assert_close(della, dare, rtol=1e-6, atol=1e-7)


def test_della_is_unbiased_and_keeps_the_declared_shares() -> None:
    """Over many seeds the mean is the task vector; each rank survives with its probability."""
    delta = np.array([[1.0, 2.0, 3.0]])
    draws = np.stack(
        [run("della_linear", [delta], density=0.5, epsilon=0.2, seed=seed).numpy() for seed in range(3000)]
    )
    assert draws.mean(axis=0)[0] == pytest.approx([1.0, 2.0, 3.0], abs=0.12)
    assert (draws != 0).mean(axis=0)[0] == pytest.approx([0.3, 0.5, 0.7], abs=0.03)


def test_uniform_numbers_and_masks_are_the_same_draw() -> None:
    key = mask_key(1, "p", "s0")
    assert torch.equal(uniform(500, key, offset=7) < 0.3, keep_mask(500, key, 0.3, offset=7))
    assert torch.equal(uniform(500, key)[100:], uniform(400, key, offset=100))
