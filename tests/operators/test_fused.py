"""VaRM and SCE, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators import get
from evomerge.testing.operators import OperatorCase, blend

HAND = [[4.0, 0.0, 1.0, -1.0], [0.0, 2.0, 1.0, 1.0]]
stacks = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(-4, 4))


def run(method: str, deltas: Sequence[object], **params: float | str) -> np.ndarray:
    """Blend task vectors over a base of zeros."""
    tensors = [torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    case = OperatorCase(spec=get(method), settings=params)
    return blend(case, tensors, torch.zeros_like(tensors[0]), aliases="abcd").numpy()


def varm_oracle(deltas: np.ndarray, degree: int, power: float, scope: str) -> np.ndarray:
    sizes = np.abs(deltas.astype(np.float64)) ** degree
    sizes = sizes.mean(axis=1, keepdims=True) if scope == "tensor" else sizes
    raised = np.where(sizes > 0, np.where(sizes > 0, sizes, 1.0) ** power, 0.0)
    whole = raised.sum(axis=0)
    return (raised * deltas).sum(axis=0) / np.where(whole > 0, whole, 1.0)


def sce_oracle(deltas: np.ndarray, density: float, mask_scope: str) -> np.ndarray:
    """Select by a full sort of exact variances (N² times them are whole numbers), calculate, erase."""
    count = len(deltas)
    variance = count * (deltas**2).sum(axis=0) - deltas.sum(axis=0) ** 2
    varied = int((variance > 0).sum())
    selected = np.ones(deltas.shape[1], dtype=bool)
    if density < 1 and varied:
        selected = variance >= np.sort(variance)[::-1][max(1, int(density * varied)) - 1]
    weights = ((deltas * selected) ** 2).sum(axis=1).astype(np.float64)
    used = deltas * selected if mask_scope == "all" else deltas
    sign = np.where(used.sum(axis=0) >= 0, 1, -1)
    agrees = weights[:, None] * (np.sign(used) == sign)
    whole = agrees.sum(axis=0)
    return (agrees * used).sum(axis=0) / np.where(whole > 0, whole, 1.0)


def test_varm_by_hand() -> None:
    """Mean squares 4.5 and 1.5 give weights 3/4 and 1/4."""
    assert run("varm", HAND).tolist() == [3.0, 0.5, 1.0, -0.5]


def test_sce_by_hand() -> None:
    """The largest of three variances is that of the first entry, which only the first source changed."""
    assert run("sce", HAND, density=0.5).tolist() == [4.0, 0.0, 0.0, 0.0]
    assert run("sce", HAND, density=0.5, mask_scope="coefficient").tolist() == [4.0, 0.0, 1.0, 0.0]
    assert run("sce", HAND, density=0.5, scale=0.5).tolist() == [2.0, 0.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    deltas=stacks,
    statistic=st.sampled_from(["square", "abs"]),
    power=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    scope=st.sampled_from(["tensor", "element"]),
)
def test_varm_is_a_mean_weighted_by_change(deltas: np.ndarray, statistic: str, power: float, scope: str) -> None:
    expected = varm_oracle(deltas, 2 if statistic == "square" else 1, power, scope)
    result = run("varm", list(deltas), statistic=statistic, power=power, scope=scope)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    deltas=stacks, density=st.sampled_from([0.1, 0.5, 0.75, 1.0]), mask_scope=st.sampled_from(["all", "coefficient"])
)
def test_sce_selects_calculates_and_erases(deltas: np.ndarray, density: float, mask_scope: str) -> None:
    result = run("sce", list(deltas), density=density, mask_scope=mask_scope)
    np.testing.assert_allclose(result, sce_oracle(deltas, density, mask_scope), rtol=1e-5, atol=1e-6)


def test_a_large_tensor_is_selected_from_span_by_span() -> None:
    deltas = np.random.default_rng(0).integers(-40, 41, size=(3, 150_000))
    for mask_scope in ("all", "coefficient"):
        result = run("sce", list(deltas), density=0.1, mask_scope=mask_scope)
        np.testing.assert_allclose(result, sce_oracle(deltas, 0.1, mask_scope), rtol=1e-5, atol=1e-5)


def test_identical_sources_give_themselves_at_every_density() -> None:
    for density in (0.1, 0.5, 1.0):
        for mask_scope in ("all", "coefficient"):
            assert run("sce", [HAND[0]] * 3, density=density, mask_scope=mask_scope).tolist() == HAND[0]


def test_opposite_task_vectors() -> None:
    """VaRM cancels; in SCE the votes tie, and a sum of 0 counts as positive."""
    opposite = [[2.0, -3.0], [-2.0, 3.0]]
    assert run("varm", opposite).tolist() == [0.0, 0.0]
    assert run("sce", opposite).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("method", "params"),
    [("varm", {}), ("varm", {"scope": "element"}), ("sce", {"density": 0.5}), ("sce", {"mask_scope": "coefficient"})],
)
def test_tiny_task_vectors_have_the_weights_of_large_ones(method: str, params: dict[str, float | str]) -> None:
    """Mean squares of 1e-17 are far below the bounds with which others fall back to equal weights."""
    deltas = np.random.default_rng(0).standard_normal((3, 60)).astype(np.float32) * [[1], [3], [0.2]]
    large = run(method, list(deltas), **params)
    tiny = run(method, list(deltas * 2.0**-28), **params)
    np.testing.assert_allclose(tiny * 2.0**28, large, rtol=1e-6)


@pytest.mark.parametrize("scope", ["tensor", "element"])
def test_a_source_that_did_not_change_has_no_weight(scope: str) -> None:
    for power in (0.0, 1.0):
        with_zero = run("varm", [*HAND, [0.0] * 4], scope=scope, power=power)
        assert with_zero.tolist() == run("varm", HAND, scope=scope, power=power).tolist()
    assert run("varm", [[0.0, 0.0]] * 2, scope=scope).tolist() == [0.0, 0.0]
