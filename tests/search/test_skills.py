"""Who can do what, by hand and in general."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.search.skills import (
    NOBODY,
    attraction_matrix,
    clusters,
    complementary,
    coverage,
    entropy,
    owners,
    shares,
)

SCORES = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=np.float64)
ARRAYS = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1)).map(
    lambda seed: np.random.default_rng(seed[2]).integers(0, 5, seed[:2]) / 4
)


def test_coverage_is_the_share_that_anyone_solves() -> None:
    assert coverage(SCORES) == 0.75
    assert coverage(np.array([[0.5, 0.0], [0.25, 1.0]])) == 0.75


def test_entropy_is_0_where_all_agree_and_1_where_half_do() -> None:
    assert entropy(np.array([[1.0, 0.0], [1.0, 0.0]])) == 0
    assert entropy(np.array([[1.0, 0.0], [0.0, 1.0]])) == 1
    one_in_three = -(np.log2(1 / 3) / 3 + 2 * np.log2(2 / 3) / 3)
    assert entropy(SCORES) == pytest.approx(2 * one_in_three / 4)


def test_a_sample_is_shared_by_those_that_solve_it() -> None:
    assert shares(SCORES) == pytest.approx(np.array([[1 / 3, 1, 0, 0], [1 / 3, 0, 1, 0], [1 / 3, 0, 0, 0]]))


def test_a_sample_that_all_solve_belongs_to_the_one_that_has_least_elsewhere() -> None:
    assert owners(SCORES).tolist() == [2, 0, 1, NOBODY]


def test_clusters_are_samples_on_which_the_same_members_do_well() -> None:
    """Two specialists, a sample for both, and one for none: numbered from the best solved."""
    scores = np.array([[1, 1, 0, 0, 1, 0, 0.9], [0, 0, 1, 1, 1, 0, 0]])
    assert clusters(scores, 4).tolist() == [2, 2, 1, 1, 0, 3, 2]
    assert clusters(scores, 1).tolist() == [0] * 7
    assert max(clusters(SCORES, 9)) == 3
    with pytest.raises(ValueError, match="at least one cluster, got 0"):
        clusters(scores, 0)


def test_complementary_pairs_by_hand() -> None:
    """The two specialists reach three samples of four together; neither alone has more than two."""
    first, *others = complementary(SCORES)
    assert (first.first, first.second, first.union, first.gain) == (0, 1, 0.75, 0.25)
    assert [(pair.first, pair.second, pair.union, pair.gain) for pair in others] == [(0, 2, 0.5, 0), (1, 2, 0.5, 0)]


def test_the_attraction_matrix_has_a_row_for_each_first_parent() -> None:
    assert attraction_matrix(SCORES) == pytest.approx(np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]]))


@settings(deadline=None)
@given(ARRAYS)
def test_what_always_holds(scores: NDArray[np.float64]) -> None:
    solved = scores.max(axis=0) > 0
    assert 0 <= entropy(scores) <= 1
    assert scores.mean(axis=1).max() <= coverage(scores) + 1e-12
    assert shares(scores).sum(axis=0) == pytest.approx(solved.astype(float))
    owner = owners(scores)
    assert np.array_equal(owner == NOBODY, ~solved)
    for sample in np.flatnonzero(solved):
        assert scores[owner[sample], sample] == scores[:, sample].max()
    pairs = complementary(scores)
    assert len(pairs) == len(scores) * (len(scores) - 1) // 2
    assert all(pair.gain >= -1e-12 and pair.union <= coverage(scores) + 1e-12 for pair in pairs)


@settings(deadline=None)
@given(ARRAYS, st.integers(1, 6))
def test_clusters_are_numbered_without_gaps_and_keep_equal_samples_together(
    scores: NDArray[np.float64], count: int
) -> None:
    labels = clusters(scores, count)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))
    assert labels.max() < count
    by_column: dict[bytes, int] = {}
    for column, label in zip(scores.T, labels.tolist(), strict=True):
        assert by_column.setdefault(column.tobytes(), label) == label
    means = [scores[:, labels == label].mean() for label in range(labels.max() + 1)]
    assert means == sorted(means, reverse=True)
