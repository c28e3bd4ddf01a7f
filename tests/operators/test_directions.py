"""Means of directions, against the textbook in NumPy and float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context


def run(method: str, vectors: Sequence[object], base: object = None, **params: object) -> np.ndarray:
    aliases = [f"s{index}" for index in range(len(vectors))]
    used = {
        key: dict(zip(aliases, value, strict=True)) if isinstance(value, list) else value
        for key, value in params.items()
    }
    spec = get(method)
    tensors = [torch.tensor(np.asarray(vector, dtype=np.float32)) for vector in vectors]
    origin = torch.zeros_like(tensors[0]) if base is None else torch.tensor(np.asarray(base, dtype=np.float32))
    context = Context(name="p", source_ids=tuple(aliases))
    kernel = load(spec)
    return kernel(tensors, origin if spec.base == "required" else None, spec.complete(used, aliases), context).numpy()


def arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The textbook formula in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    phi = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (math.sin((1 - t) * phi) * a + math.sin(t * phi) * b) / math.sin(phi)


def log_map(point: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The tangent at a point of the unit sphere that leads to x."""
    cosine = float(np.clip(point @ x, -1, 1))
    phi = math.acos(cosine)
    return phi / math.sin(phi) * (x - cosine * point) if phi > 1e-12 else np.zeros_like(x)


@pytest.fixture
def vectors() -> np.ndarray:
    rng = np.random.default_rng(4)
    return (rng.standard_normal((3, 40)) * np.array([[1.0], [2.0], [0.5]])).astype(np.float32)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.2, 0.6], [1.0, 0.0]])
def test_nuslerp_is_slerp_at_the_second_share(vectors: np.ndarray, weights: list[float]) -> None:
    a, b = vectors[:2]
    t = weights[1] / sum(weights)
    assert np.allclose(run("nuslerp", [a, b], weight=weights), arc(a, b, t), atol=1e-6)


def test_nuslerp_of_task_vectors_takes_the_angle_at_the_base(vectors: np.ndarray) -> None:
    base, a, b = vectors[2], vectors[2] + vectors[0], vectors[2] + vectors[1]
    expected = base + arc(a - base, b - base, 0.25)
    assert np.allclose(run("task_nuslerp", [a, b], base, weight=[0.75, 0.25]), expected, atol=2e-6)


@pytest.mark.parametrize(("scope", "turn"), [("row", False), ("column", True)])
def test_nuslerp_by_rows_and_by_columns(vectors: np.ndarray, scope: str, turn: bool) -> None:
    a, b = vectors[0].reshape(5, 8), vectors[1].reshape(5, 8)
    rows = zip(a.T if turn else a, b.T if turn else b, strict=True)
    expected = np.stack([arc(x, y, 0.3) for x, y in rows])
    actual = run("nuslerp", [a, b], weight=[0.7, 0.3], scope=scope)
    assert np.allclose(actual.T if turn else actual, expected, atol=1e-6)


def test_nuslerp_of_a_zero_row_is_linear_there() -> None:
    a, b = [[0.0, 0.0], [1.0, 0.0]], [[2.0, 4.0], [0.0, 2.0]]
    actual = run("nuslerp", [a, b], scope="row")
    assert actual.tolist() == [[1.0, 2.0], pytest.approx([0.70710678, 1.41421356])]


def test_multislerp_is_the_mean_direction_at_the_mean_length(vectors: np.ndarray) -> None:
    shares = np.array([0.5, 0.3, 0.2])
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    mean = shares @ (wide / lengths[:, None])
    expected = mean / np.linalg.norm(mean) * (shares @ lengths)
    assert np.allclose(run("multislerp", list(vectors), weight=[5.0, 3.0, 2.0]), expected, atol=1e-6)


def test_multislerp_of_two_equal_shares_is_slerp_in_the_middle(vectors: np.ndarray) -> None:
    a, b = vectors[0] / np.linalg.norm(vectors[0]), vectors[1] / np.linalg.norm(vectors[1])
    assert np.allclose(run("multislerp", [a, b]), arc(a, b, 0.5), atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.6, 0.3, 0.1]])
def test_the_karcher_mean_has_no_mean_tangent_left(vectors: np.ndarray, weights: list[float]) -> None:
    """The defining property: Σ w_i log_u(x_i) = 0; and the length is the weighted mean length."""
    result = run("karcher", list(vectors), weight=weights, iterations=200, tolerance=1e-9).astype(np.float64)
    shares, wide = np.array(weights) / sum(weights), vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    point = result / np.linalg.norm(result)
    tangent = sum(share * log_map(point, x) for share, x in zip(shares, wide / lengths[:, None], strict=True))
    assert np.linalg.norm(tangent) < 1e-6
    assert np.linalg.norm(result) == pytest.approx(float(shares @ lengths), rel=1e-6)


def test_the_karcher_mean_of_two_is_the_middle_of_the_arc(vectors: np.ndarray) -> None:
    a, b = vectors[0] / np.linalg.norm(vectors[0]), vectors[1] / np.linalg.norm(vectors[1])
    assert np.allclose(run("karcher", [a, b], iterations=50, tolerance=1e-9), arc(a, b, 0.5), atol=1e-6)


def test_a_source_of_length_zero_counts_in_the_length_alone(vectors: np.ndarray) -> None:
    zero = np.zeros(40, dtype=np.float32)
    assert np.allclose(run("karcher", [vectors[0], zero]), vectors[0] / 2, atol=1e-6)


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_directions_that_cancel_are_averaged_linearly(method: str) -> None:
    assert run(method, [[3.0, 0.0], [-1.0, 0.0]]).tolist() == pytest.approx([1.0, 0.0])
