"""Nearswap and Arcee fusion, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators import get
from evomerge.operators.kernels.pairs import divergences
from evomerge.testing.operators import OperatorCase, blend

pairs = hnp.arrays(
    np.float32, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 8)), elements=st.floats(-3, 3, width=32)
)


def run(method: str, base: object, tuned: object, **params: float) -> np.ndarray:
    first, second = (torch.tensor(np.asarray(value, dtype=np.float32)) for value in (base, tuned))
    return blend(OperatorCase(spec=get(method), settings=params), [second], first).numpy()


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def importance(base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    p, q = softmax(tuned.astype(np.float64)), softmax(base.astype(np.float64))
    return np.abs(tuned.astype(np.float64) - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)


def limit(scores: np.ndarray, spread: float) -> float:
    ascending = np.sort(scores.ravel())
    first, median, third = (ascending[int(share * (ascending.size - 1))] for share in (0.25, 0.5, 0.75))
    return float(median + spread * (third - first))


def test_nearswap_by_hand() -> None:
    """Steps longer than t become t, the others are made whole."""
    assert run("nearswap", [0.0, 0.0], [0.02, -0.001], t=0.005).tolist() == pytest.approx([0.005, -0.001])


@settings(max_examples=40, deadline=None)
@given(pair=pairs, t=st.floats(1e-4, 2.0))
def test_nearswap_is_the_weighted_form_of_mergekit(pair: np.ndarray, t: float) -> None:
    """mergekit's form: a step of weight t/|δ|, at most 1. Tolerance: one rounding of values up to 3."""
    base, tuned = pair.astype(np.float64)
    weight = np.clip(t / np.maximum(np.abs(tuned - base), 1e-6), 0, 1)
    np.testing.assert_allclose(run("nearswap", *pair, t=t), base + weight * (tuned - base), atol=1e-6)


def test_nearswap_goes_from_the_base_to_the_other_model() -> None:
    base, tuned = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    base[0] = -0.0
    assert run("nearswap", base, tuned, t=0.0).tobytes() == base.tobytes()
    np.testing.assert_allclose(run("nearswap", base, tuned, t=100.0), tuned, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 30), (500,), (700, 1500)])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_fusion_keeps_what_is_important(shape: tuple[int, ...], spread: float) -> None:
    """Against a sort in float64, beyond a million entries too, except entries within rounding of the limit."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal(shape).astype(np.float32)
    scale = np.exp(rng.standard_normal((shape[0], 1) if len(shape) > 1 else shape))
    tuned = (base + 0.1 * scale * rng.standard_normal(shape)).astype(np.float32)
    scores = importance(base, tuned)
    bound = limit(scores, spread)
    clear = np.abs(scores / bound - 1) > 1e-5
    expected = np.where(scores >= bound, tuned, base)
    result = run("arcee_fusion", base, tuned, spread=spread)
    np.testing.assert_allclose(result[clear], expected[clear], rtol=1e-6, atol=1e-6)
    assert clear.mean() > 0.99
    assert 0.01 < (result != base).mean() < 0.55


def test_fusion_of_siblings_is_not_lost_in_rounding() -> None:
    """Task vectors a hundred millionth as long keep the same entries; a float32 divergence of them is all noise."""
    rng = np.random.default_rng(0)
    delta = torch.from_numpy(rng.standard_normal((20, 30)).astype(np.float32) * np.float32(2.0**-8))
    case, base = OperatorCase(spec=get("arcee_fusion")), torch.zeros(20, 30)
    small = blend(case, [delta], base)
    tiny = blend(case, [delta * 2.0**-20], base)
    assert ((small != 0) == (tiny != 0)).float().mean() > 0.995
    assert 0 < (tiny != 0).float().mean() < 0.5


@settings(max_examples=40, deadline=None)
@given(pair=pairs)
def test_divergence_is_that_of_the_softmaxes(pair: np.ndarray) -> None:
    base, tuned = pair.astype(np.float64)
    p, q = softmax(tuned), softmax(base)
    found = divergences(
        torch.from_numpy(pair[0]), torch.from_numpy(pair[1]).double() - torch.from_numpy(pair[0])
    ).numpy()
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(axis=-1), rtol=1e-6, atol=1e-12)


def test_divergence_of_a_tiny_step_is_half_its_variance() -> None:
    rng = np.random.default_rng(0)
    base, delta = rng.standard_normal((5, 30)), rng.standard_normal((5, 30)) * 1e-8
    q = softmax(base)
    variance = (q * delta**2).sum(axis=1) - (q * delta).sum(axis=1) ** 2
    found = divergences(torch.from_numpy(base), torch.from_numpy(delta)).numpy()
    np.testing.assert_allclose(found, variance / 2, rtol=1e-5)


def test_rows_with_steps_of_any_size_stay_finite() -> None:
    found = divergences(torch.tensor([[0.0, 0.0], [800.0, -800.0]]), torch.tensor([[900.0, -900.0], [-1600.0, 1600.0]]))
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
