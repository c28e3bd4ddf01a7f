"""Weights from training metrics, and model stock, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.soups import family_weights
from evomerge.testing.operators import OperatorCase, blend

deltas = hnp.arrays(
    np.int64, st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 5)), elements=st.integers(-9, 9)
)


def stock(deltas: Sequence[object], **params: bool | str) -> Tensor:
    """Blend task vectors over a base of zeros."""
    tensors = [torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    case = OperatorCase(spec=get("model_stock"), settings=params)
    return blend(case, tensors, torch.zeros_like(tensors[0]), aliases="abcdef")


def stock_oracle(deltas: np.ndarray, clip: bool) -> np.ndarray:
    """The formula, pair by pair, for one vector a source."""
    cosines = []
    for a, b in combinations(deltas.astype(np.float64), 2):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosines.append(a @ b / norms if norms else 0.0)
    count, cosine = len(deltas), np.mean(cosines)
    below = 1 + (count - 1) * cosine
    share = count * cosine / below if below > 1e-6 else 0.0
    return (max(0.0, share) if clip else share) * deltas.mean(axis=0)


@pytest.mark.parametrize("clip", [True, False])
def test_stock_by_hand(clip: bool) -> None:
    """At 45 degrees t = √2/(1 + √2/2) = 0.8284; orthogonal and opposite task vectors give the base."""
    assert stock([[1.0, 0.0], [1.0, 1.0]], clip=clip).tolist() == pytest.approx([0.8284, 0.4142], abs=1e-4)
    assert stock([[1.0, 0.0], [0.0, 1.0]], clip=clip).tolist() == [0.0, 0.0]
    assert stock([[1.0, 0.0], [-1.0, 0.0]], clip=clip).tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(deltas=deltas, clip=st.booleans())
def test_stock_follows_the_formula(deltas: np.ndarray, clip: bool) -> None:
    """Tolerance: float32 rounding of the sum; c is in float64 on both sides, but t is steep near the singular c."""
    flat = deltas.reshape(len(deltas), -1)
    whole = stock(list(deltas), clip=clip).numpy().reshape(-1)
    np.testing.assert_allclose(whole, stock_oracle(flat, clip), rtol=1e-5, atol=1e-5)
    rows = stock(list(deltas), clip=clip, scope="row").numpy()
    if deltas.shape[1] > 0:
        for row, found in enumerate(rows):
            np.testing.assert_allclose(found, stock_oracle(deltas[:, row], clip), rtol=1e-5, atol=1e-5)


def test_three_directions_that_cancel_give_the_base() -> None:
    """c = -1/(N - 1) up to rounding, where the formula divides by 0, though the mean is not 0."""
    angles = 2 * np.pi * np.arange(3) / 3
    for clip in (True, False):
        for scope in ("tensor", "row"):
            spread = [[[(k + 1) * np.cos(angle), (k + 1) * np.sin(angle)]] for k, angle in enumerate(angles)]
            assert stock(spread, clip=clip, scope=scope).tolist() == [[0.0, 0.0]]


def test_obtuse_task_vectors_stop_at_the_base_or_go_beyond_it() -> None:
    obtuse = [[1.0, 0.0], [-0.6, 0.8]]
    assert stock(obtuse).tolist() == [0.0, 0.0]
    assert stock(obtuse, clip=False).tolist() == pytest.approx([-0.6, -1.2])  # c = -0.6, t = -3


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_tiny_task_vectors_move_as_far_as_large_ones(scope: str) -> None:
    """An absolute lower bound on norms would turn them back to the base."""
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((1, 6, 8)), rng.standard_normal((3, 6, 8))
    large = stock(list(common + 0.3 * own), scope=scope)
    tiny = stock(list((common + 0.3 * own).astype(np.float32) * np.float32(2.0**-30)), scope=scope)
    torch.testing.assert_close(tiny * 2.0**30, large, rtol=1e-6, atol=0)
    assert large.norm() > 1.0


def test_a_zero_task_vector_is_orthogonal_to_every_other() -> None:
    assert stock([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]).tolist() == pytest.approx([0.8, 0.0])  # c = 1/3, t = 3/5


def test_products_of_task_vectors_are_kept_between_candidates() -> None:
    tensors = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]
    store: dict[str, tuple[Tensor, ...]] = {}

    def kept(what: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return store.setdefault(what, make()) if what not in store else store[what]

    spec = get("model_stock")
    context = Context(name="p", source_ids=("a", "b"), kept=kept)
    for clip in (True, False):
        load(spec)(tensors, torch.zeros(2), spec.complete({"clip": clip}, ["a", "b"]), context)
    assert [tuple(tensor.shape for tensor in found) for found in store.values()] == [((2, 2),)]


def test_weighting_families_by_hand() -> None:
    assert family_weights((1.0, 2.0), "loss_power", 1.0) == pytest.approx((1.0, 0.5))
    assert family_weights((100.0, 400.0), "step_power", 0.5) == pytest.approx((0.5, 1.0))
    assert family_weights((2.0, 3.0), "loss_exponential", 2.0) == pytest.approx((1.0, np.exp(-1.0)))


@given(
    metrics=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=4),
    weighting=st.sampled_from(["loss_power", "loss_exponential", "step_power"]),
    sharpness=st.floats(0, 10),
    factor=st.sampled_from([0.25, 8.0]),
)
def test_a_common_factor_of_the_metrics_cancels(
    metrics: list[float], weighting: str, sharpness: float, factor: float
) -> None:
    scaled = family_weights([metric * factor for metric in metrics], weighting, sharpness)
    assert scaled == pytest.approx(family_weights(metrics, weighting, sharpness), rel=1e-9)


def mwa(tensors: Sequence[float], **params: object) -> float:
    aliases = "abc"[: len(tensors)]
    written = {name: dict(zip(aliases, v, strict=True)) if isinstance(v, list) else v for name, v in params.items()}
    stored = [torch.tensor([value]) for value in tensors]
    return float(blend(OperatorCase(spec=get("mwa")), stored, stored[0], settings=written))  # type: ignore[arg-type]


def test_sharpness_goes_from_the_plain_average_to_the_best_checkpoint() -> None:
    assert mwa([1.0, 3.0, 8.0], metric=[0.5, 2.0, 9.0], sharpness=0.0) == pytest.approx(4.0)
    assert mwa([1.0, 3.0, 8.0], metric=[0.5, 2.0, 9.0], sharpness=1e4) == 1.0
    assert mwa([1.0, 3.0, 8.0], metric=[100.0, 200.0, 300.0], weighting="step_power", sharpness=1e4) == 8.0
    assert mwa([1.0, 4.0], metric=[1.0, 2.0]) == pytest.approx(2.0)  # weights 2/3 and 1/3


@pytest.mark.parametrize("metric", [0.0, -1.0])
def test_a_loss_that_is_not_positive_is_refused(metric: float) -> None:
    with pytest.raises(RecipeError, match=r"'metric' must lie in \(0, inf\)"):
        mwa([1.0, 2.0], metric=[1.0, metric])
