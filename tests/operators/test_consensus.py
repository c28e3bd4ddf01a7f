"""TALL-masks and Consensus Merging, against fixtures computed by hand and NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.operators import get
from evomerge.operators.metadata import Setting
from evomerge.testing.operators import OperatorCase, blend

stacks = hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(-4, 4))
thresholds = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def run(method: str, deltas: Sequence[object], base: object = 0.0, **params: Setting) -> np.ndarray:
    """Blend task vectors over a base."""
    root = torch.tensor(np.broadcast_to(np.asarray(base, dtype=np.float32), np.shape(deltas[0])))
    tensors = [root + torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    return blend(OperatorCase(spec=get(method)), tensors, root, settings=params, aliases="abcd").numpy()


def masks(deltas: np.ndarray, threshold: float) -> np.ndarray:
    whole = deltas.sum(axis=0)
    return np.array([np.abs(delta) > threshold * np.abs(whole - delta) for delta in deltas])


def test_consensus_by_hand() -> None:
    """Only the third entry is kept by both masks: 1 > 0.4·1."""
    deltas = [[2.0, 0.0, 1.0, -1.0], [0.0, 2.0, 1.0, 1.0]]
    assert run("consensus", deltas, mask_threshold=0.4, k=2).tolist() == [0.0, 0.0, 2.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(deltas=stacks, threshold=thresholds, k=st.integers(0, 5))
def test_consensus_keeps_what_k_masks_keep(deltas: np.ndarray, threshold: float, k: int) -> None:
    """Exact: whole numbers, and thresholds that are powers of two, so that equality shows the masks to be strict."""
    keep = masks(deltas, threshold).sum(axis=0) >= k
    expected = 0.5 * deltas.sum(axis=0) * keep
    result = run("consensus", list(deltas), mask_threshold=threshold, k=k, scale=0.5)
    assert np.array_equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(deltas=stacks, threshold=thresholds, data=st.data())
def test_a_retrieved_source_has_its_own_mask(deltas: np.ndarray, threshold: float, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(deltas), max_size=len(deltas)))
    retrieve: Mapping[str, bool] = dict(zip("abcd", chosen, strict=False))
    keep = masks(deltas, threshold)[np.array(chosen)].any(axis=0)
    result = run("tall_mask", list(deltas), mask_threshold=threshold, retrieve=retrieve)
    assert np.array_equal(result, deltas.sum(axis=0) * keep)


def test_each_source_may_have_its_own_threshold() -> None:
    deltas = [[2.0, 1.0], [1.0, 2.0]]
    result = run("tall_mask", deltas, mask_threshold={"a": 0.25, "b": 4.0}, retrieve={"a": True, "b": True})
    assert result.tolist() == [3.0, 3.0]
    assert run("tall_mask", deltas, mask_threshold={"a": 4.0, "b": 0.6}).tolist() == [0.0, 3.0]


def test_too_many_votes_give_the_base_and_none_task_arithmetic() -> None:
    deltas = [[2.0, -1.0, 0.5], [1.0, 2.0, 0.25]]
    assert run("consensus", deltas, base=[1.0, 2.0, 3.0], k=3).tolist() == [1.0, 2.0, 3.0]
    assert run("consensus", deltas, k=0).tolist() == run("task_arithmetic", deltas).tolist()


def test_a_source_that_equals_the_base_never_votes() -> None:
    deltas = [[2.0, 0.0, 1.0, -1.0], [0.0, 2.0, 1.0, 1.0]]
    for k in (0, 1, 2):
        assert run("consensus", [*deltas, [0.0] * 4], k=k).tolist() == run("consensus", deltas, k=k).tolist()


def test_identical_sources_are_kept_whole_or_not_at_all() -> None:
    """N equal task vectors vote iff λ < 1/(N - 1)."""
    same = [[2.0, -1.0, 0.0]] * 3
    assert run("consensus", same, mask_threshold=0.49).tolist() == [6.0, -3.0, 0.0]
    assert run("consensus", same, mask_threshold=0.51).tolist() == [0.0, 0.0, 0.0]


def test_scale_zero_gives_the_base_bit_for_bit() -> None:
    base = np.array([-0.0, 1.5, 3.0], dtype=np.float32)
    for method in ("consensus", "tall_mask"):
        assert run(method, [[1.0, 2.0, 3.0]] * 2, base=base, scale=0.0).tobytes() == base.tobytes()
