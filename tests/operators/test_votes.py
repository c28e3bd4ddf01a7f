"""The election by arithmetic on signs, against the definition with masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators.kernels.scratch import Scratch
from evomerge.operators.kernels.votes import Votes

deltas = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-5, 5))
weight = st.sampled_from([-0.75, -0.5, 0.25, 0.5, 1.0, 2.0])


def oracle(stack: np.ndarray, weights: list[float], factors: list[float], zero_sign: str, *, mean: bool) -> np.ndarray:
    votes = stack * np.array(weights)[:, None] * np.array(factors)[:, None]
    sign = np.sign(votes.sum(0))
    sign[sign == 0] = {"zero": 0, "positive": 1, "negative": -1}[zero_sign]
    agree = votes * sign > 0
    divisor = (agree * np.abs(weights)[:, None]).sum(0) if mean else 1.0
    return np.asarray((votes * agree).sum(0) / np.where(divisor == 0, 1.0, divisor))


@pytest.mark.parametrize("zero_sign", ["zero", "positive", "negative"])
@pytest.mark.parametrize("mean", [True, False])
@settings(max_examples=60, deadline=None)
@given(stack=deltas, data=st.data())
def test_equals_the_definition(zero_sign: str, mean: bool, stack: np.ndarray, data: st.DataObject) -> None:
    """On a grid where every vote is exact."""
    weights = data.draw(st.lists(weight, min_size=len(stack), max_size=len(stack)))
    factors = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(stack), max_size=len(stack)))
    expected = oracle(stack, weights, factors, zero_sign, mean=mean)
    for scratch in (None, Scratch(torch.device("cpu"))):
        votes = Votes(mean=mean, scratch=scratch)
        for row, one, factor in zip(stack, weights, factors, strict=True):
            votes.add(torch.tensor(row, dtype=torch.float32), one, factor)
        assert np.allclose(votes.merge(zero_sign).numpy(), expected, rtol=1e-6, atol=0)


def test_a_small_weight_that_agrees_alone_divides_exactly() -> None:
    """Its share is not lost beside the weights of the others."""
    votes = Votes(mean=True)
    votes.add(torch.tensor([3e9]), 1e-7)
    votes.add(torch.tensor([-1.0]), 1.0)
    assert votes.merge("zero").tolist() == pytest.approx([3e9])


def test_an_election_without_votes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a vote"):
        Votes(mean=True).merge("zero")


def test_scratch_gives_each_span_the_same_vectors_and_no_two_the_same() -> None:
    scratch = Scratch(torch.device("cpu"))
    seen = []
    for span in scratch.over(iter([(0, 8), (8, 16), (16, 19)])):
        first, second = (scratch.take(span.stop - span.start) for _ in range(2))
        assert first.shape == second.shape == (span.stop - span.start,)
        assert first.data_ptr() != second.data_ptr()
        seen.append((first.data_ptr(), second.data_ptr()))
    assert len(set(seen)) == 1
    assert scratch.take(100).shape == (100,)
