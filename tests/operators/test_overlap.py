"""RAM and RAM+, against fixtures computed by hand and NumPy in float64."""

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

stacks = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(-4, 4))


def run(method: str, deltas: Sequence[object], **params: float) -> np.ndarray:
    """Blend task vectors over a base of zeros."""
    tensors = [torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    case = OperatorCase(spec=get(method), settings=params)
    return blend(case, tensors, torch.zeros_like(tensors[0]), aliases="abcd").numpy()


def oracle(deltas: np.ndarray, epsilon: float, r: float, alpha: float) -> np.ndarray:
    """Entry by entry; r = 0 is RAM."""
    active = np.abs(deltas) > epsilon
    count = active.sum(axis=0)
    boosts = []
    for own in active:
        shared, unique = (own & (count > 1)).sum(), (own & (count == 1)).sum()
        boosts.append(1 + r * min(alpha, shared / unique) if unique else 1.0)
    merged = np.zeros(deltas.shape[1])
    for entry in range(deltas.shape[1]):
        owners = np.flatnonzero(active[:, entry])
        if len(owners) == 1:
            merged[entry] = boosts[owners[0]] * deltas[owners[0], entry]
        elif len(owners) > 1:
            merged[entry] = deltas[owners, entry].mean()
    return merged


def test_by_hand() -> None:
    """Shared entries are averaged, those of one source kept whole; the first shares 2 of 3, the second 2 of 2."""
    deltas = [[4.0, -2.0, 1.0, 0.0], [2.0, 2.0, 0.0, 0.0]]
    assert run("ram", deltas).tolist() == [3.0, 0.0, 1.0, 0.0]
    assert run("ramplus", deltas).tolist() == pytest.approx([3.0, 0.0, 1.02, 0.0])  # 1 + 0.1·min(0.2, 2)
    assert run("ramplus", deltas, alpha=5.0).tolist() == pytest.approx([3.0, 0.0, 1.2, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    deltas=stacks, epsilon=st.sampled_from([0.0, 0.5, 1.0, 2.5]), r=st.floats(0, 1), alpha=st.sampled_from([0, 0.2, 3])
)
def test_follows_the_definition(deltas: np.ndarray, epsilon: float, r: float, alpha: float) -> None:
    """An entry as large as ε is not active. Tolerance: float32 rounding."""
    plus = run("ramplus", list(deltas), epsilon=epsilon, r=r, alpha=alpha)
    np.testing.assert_allclose(plus, oracle(deltas, epsilon, r, alpha), rtol=1e-6)
    np.testing.assert_allclose(run("ram", list(deltas), epsilon=epsilon), oracle(deltas, epsilon, 0, 0), rtol=1e-6)


def test_a_source_that_equals_the_base_takes_no_part() -> None:
    deltas = [[4.0, -2.0, 1.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    for method in ("ram", "ramplus"):
        assert run(method, deltas).tolist() == run(method, deltas[:2]).tolist()


def test_the_threshold_is_absolute() -> None:
    """By default as in mergekit: task vectors below 1e-5 are nothing; a smaller threshold finds them again."""
    tiny = [[1e-6, 0.0], [3e-6, 2e-6]]
    assert run("ram", tiny).tolist() == [0.0, 0.0]
    assert run("ram", tiny, epsilon=1e-7).tolist() == pytest.approx([2e-6, 2e-6])


def test_counts_are_of_the_whole_tensor() -> None:
    """More entries than one span holds."""
    size = 300_000
    first, second = np.ones(size), np.zeros(size)
    second[: size // 3] = 3.0
    result = run("ramplus", [first, second], r=1.0, alpha=1.0)
    assert result[0] == 2.0
    assert result[-1] == pytest.approx(1.5)  # 1 + shared/unique = 1 + 1/2
