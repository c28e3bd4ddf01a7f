"""The arc between two tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.spherical import angle, coefficients

vectors = hnp.arrays(np.float32, (2, 9), elements=st.floats(-4, 4, width=32))


def slerp(a: object, b: object, t: float) -> torch.Tensor:
    spec = get("slerp")
    base, other = (torch.tensor(np.asarray(value, dtype=np.float32)) for value in (a, b))
    return load(spec)([other], base, spec.complete({"t": t}, ["b"]), Context(name="p", source_ids=("b",)))


def oracle(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The textbook formula in float64, angle by arccos."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    phi = math.acos(min(1.0, max(-1.0, cosine)))
    return (math.sin((1 - t) * phi) * a + math.sin(t * phi) * b) / math.sin(phi)


def siblings(cosine: float, size: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors in float64 with a given cosine."""
    rng = np.random.default_rng(0)
    a, noise = rng.standard_normal((2, size))
    a /= np.linalg.norm(a)
    noise -= noise @ a * a
    noise /= np.linalg.norm(noise)
    return a, cosine * a + math.sqrt(1 - cosine**2) * noise


def test_orthogonal_vectors_of_different_length() -> None:
    """By hand: both coefficients are sin 45° / sin 90° and apply to the vectors as they are."""
    assert slerp([1.0, 0.0], [0.0, 2.0], 0.5).tolist() == pytest.approx([0.7071, 1.4142], abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(pair=vectors, t=st.floats(0, 1))
def test_follows_the_textbook_formula(pair: np.ndarray, t: float) -> None:
    """Where the angle is far enough from 0 and π for arccos to be accurate."""
    a, b = pair
    norms = np.linalg.norm(a.astype(np.float64)), np.linalg.norm(b.astype(np.float64))
    assume(min(norms) > 1e-3)
    cosine = float(a.astype(np.float64) @ b / norms[0] / norms[1])
    assume(abs(cosine) < 0.999)
    assert np.allclose(slerp(a, b, t).numpy(), oracle(a, b, t), rtol=1e-5, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(pair=vectors, t=st.floats(0, 1))
def test_is_the_same_from_either_end(pair: np.ndarray, t: float) -> None:
    """f(a, b, t) = f(b, a, 1 - t), and the ends are the inputs."""
    a, b = pair
    assert np.allclose(slerp(a, b, t).numpy(), slerp(b, a, 1 - t).numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(slerp(a, b, 0.0).numpy(), a)
    assert np.array_equal(slerp(a, b, 1.0).numpy(), b)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9])
def test_equal_lengths_are_kept(t: float) -> None:
    for cosine in (0.99995, 0.9, 0.0, -0.9):
        a, b = siblings(cosine)
        assert float(slerp(a, b, t).double().norm()) == pytest.approx(1.0, abs=1e-6)


def test_the_angle_is_accurate_where_arccos_is_not() -> None:
    """Two float32 vectors 1e-4 rad apart: arccos of a float32 dot product gives 0 or about 3e-4."""
    phi = 1e-4
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([math.cos(phi), math.sin(phi)], dtype=torch.float64).float()
    exact = math.atan2(float(b[1]), float(b[0]))
    assert angle(a, b) == pytest.approx(exact, rel=1e-9)


def test_siblings_differ_from_the_chord_by_an_eighth_of_the_angle_squared() -> None:
    """What following the arc changes against mergekit's straight line: 1.25e-5 at cos φ = 0.99995."""
    a, b = siblings(0.99995)
    chord = (torch.tensor(a) + torch.tensor(b)).float() / 2
    distance = float((slerp(a, b, 0.5) - chord).double().norm())
    phi = math.acos(0.99995)
    assert distance == pytest.approx(phi**2 / 8, rel=0.02)
    assert distance < 2e-5


def test_degenerate_angles_fall_back_to_the_straight_line() -> None:
    """Zero, parallel and opposite tensors, a scalar and an empty tensor."""
    assert slerp([0.0, 0.0], [2.0, 4.0], 0.25).tolist() == [0.5, 1.0]
    assert slerp([1.0, 2.0], [3.0, 6.0], 0.5).tolist() == [2.0, 4.0]
    assert slerp([1.0, -2.0], [-1.0, 2.0], 0.5).tolist() == [0.0, 0.0]
    assert float(slerp(2.0, 4.0, 0.25)) == 2.5
    assert slerp([], [], 0.5).shape == (0,)


def test_the_straight_line_joins_the_arc_smoothly() -> None:
    """Just above and below the switch the coefficients agree to 12 digits."""
    a = torch.tensor([1.0, 0.0])
    above = coefficients(a, torch.tensor([1.0, 2e-6]), 0.3)
    below = coefficients(a, torch.tensor([1.0, 5e-7]), 0.3)
    assert below == (0.7, 0.3)
    assert above == pytest.approx(below, abs=1e-11)
