"""Competition and attraction by hand, and what must always hold of them."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.search.competition import Capacities, attraction, capacities, fitness, rescale, roulette
from evomerge.search.niches import Niches

THREE_BY_FOUR = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=np.float64)
"""z = 3, 1, 1, 0."""
GRADED = np.array([[0.5, 0.2], [0.25, 0.8]])
"""z = 0.75, 1; c = 0.5, 0.8."""


@st.composite
def matrices(draw: st.DrawFn, graded: bool = True) -> NDArray[np.float64]:
    """Scores of 1 to 6 members on 1 to 8 samples."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
    score = st.floats(0, 1, width=16) if graded else st.sampled_from([0.0, 1.0])
    numbers = draw(st.lists(score, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return np.array(numbers).reshape(shape)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (2, 2, 1)), (1, (4 / 3, 4 / 3, 1 / 3)), (2, (10 / 9, 10 / 9, 1 / 9))]
)
def test_fitness_by_hand(alpha: float, expected: tuple[float, ...]) -> None:
    """A sample that all three solve is worth 1 to each, a third, or a ninth; a sole solver has all of it."""
    assert fitness(THREE_BY_FOUR, alpha=alpha) == pytest.approx(expected)


def test_attraction_by_hand() -> None:
    """The first two have one sample each that the other lacks; the third has nothing to offer to anybody."""
    assert [attraction(THREE_BY_FOUR, first) for first in range(3)] == [
        pytest.approx((0, 1, 0)),
        pytest.approx((1, 0, 0)),
        pytest.approx((1, 1, 0)),
    ]


def test_graded_scores_by_hand() -> None:
    """The capacity is the best score, or 1."""
    assert capacities(GRADED) == pytest.approx((0.5, 0.8))
    assert fitness(GRADED) == pytest.approx((0.5 * 0.5 / 0.75 + 0.8 * 0.2, 0.5 * 0.25 / 0.75 + 0.8 * 0.8))
    assert fitness(GRADED, kind="binary") == pytest.approx((0.5 / 0.75 + 0.2, 0.25 / 0.75 + 0.8))
    assert attraction(GRADED, 0) == pytest.approx((0, 0.8 * 0.6))
    assert attraction(GRADED, 1) == pytest.approx((0.5 * 0.25 / 0.75, 0))


def test_rescaling_by_hand() -> None:
    """Each sample from its worst to its best member; a sample on which all are equal gives nothing."""
    assert rescale(np.array([[-2.0, 7.0], [0.0, 7.0], [2.0, 7.0]])).tolist() == [[0, 0], [0.5, 0], [1, 0]]


@settings(deadline=None)
@given(matrices(graded=False))
def test_full_competition_gives_every_solved_sample_away_once(scores: NDArray[np.float64]) -> None:
    assert fitness(scores).sum() == pytest.approx(scores.any(axis=0).sum())


@settings(deadline=None)
@given(matrices(graded=False))
def test_capacities_agree_on_scores_of_0_and_1(scores: NDArray[np.float64]) -> None:
    for alpha in (0, 0.5, 1, 2):
        binary = fitness(scores, alpha=alpha, kind="binary")
        assert fitness(scores, alpha=alpha, kind="graded") == pytest.approx(binary)
    assert attraction(scores, 0, kind="graded") == pytest.approx(attraction(scores, 0, kind="binary"))


@settings(deadline=None)
@given(matrices())
def test_without_competition_fitness_is_the_plain_sum(scores: NDArray[np.float64]) -> None:
    assert fitness(scores, alpha=0, kind="binary") == pytest.approx(scores.sum(axis=1))


@settings(deadline=None)
@given(matrices(), st.randoms())
def test_the_order_of_samples_and_of_members_means_nothing(scores: NDArray[np.float64], chance: Random) -> None:
    rng = np.random.default_rng(chance.getrandbits(32))
    members, samples = rng.permutation(scores.shape[0]), rng.permutation(scores.shape[1])
    assert fitness(scores[members][:, samples]) == pytest.approx(fitness(scores)[members])
    moved = attraction(scores[members][:, samples], 0)
    assert moved == pytest.approx(attraction(scores, int(members[0]))[members])


@settings(deadline=None)
@given(matrices())
def test_nobody_attracts_itself_and_nothing_is_ever_undefined(scores: NDArray[np.float64]) -> None:
    for first in range(len(scores)):
        g = attraction(scores, first)
        assert g[first] == 0
        assert np.all(g >= 0)
        assert np.all(np.isfinite(g))
    for alpha in (0.0, 0.5, 1.0, 3.0):
        assert np.all(np.isfinite(fitness(scores, alpha=alpha)))


@settings(deadline=None)
@given(matrices())
def test_equal_members_are_exactly_equally_fit(scores: NDArray[np.float64]) -> None:
    """Ties must be ties, whatever the places of the members."""
    f = fitness(np.concatenate([scores, scores]))
    assert np.array_equal(f[: len(scores)], f[len(scores) :])


@settings(deadline=None)
@given(matrices())
def test_rescaled_scores_lie_between_0_and_1(scores: NDArray[np.float64]) -> None:
    scaled = rescale(300 * scores - 100)
    assert np.all((scaled >= 0) & (scaled <= 1))
    differ = np.ptp(scores, axis=0) > 0
    assert np.array_equal(scaled.max(axis=0), differ)


def test_roulette_draws_in_proportion() -> None:
    """Evenly spaced draws hit each index as often as its weight says, and never one of weight 0."""
    draws = [roulette(np.array([0.0, 1.0, 0.0, 3.0, 0.0]), (step + 0.5) / 1000) for step in range(1000)]
    assert np.bincount(draws, minlength=5).tolist() == [0, 250, 0, 750, 0]
    assert roulette(np.array([0.0, 1.0, 0.0]), math.nextafter(1, 0)) == 1


def test_roulette_of_nothing_is_uniform() -> None:
    draws = [roulette(np.zeros(4), (step + 0.5) / 1000) for step in range(1000)]
    assert np.bincount(draws).tolist() == [250] * 4


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True), st.integers(-20, 20))
def test_only_the_proportions_of_weights_count(weights: list[float], unit: float, power: int) -> None:
    row = np.array(weights)
    row[row < 1e-200] = 0
    assert roulette(row * 2.0**power, unit) == roulette(row, unit)


def full() -> Niches:
    """Return an archive of the three by four."""
    niches = Niches(3)
    assert [niches.offer(id_, row) for id_, row in enumerate(THREE_BY_FOUR)] == [None] * 3
    return niches


@pytest.mark.parametrize(
    ("row", "fitness_of_all", "left"),
    [
        ((0, 0, 0, 1), (4 / 3, 4 / 3, 1 / 3, 1), 2),  # what nobody else solves is worth a place
        ((0, 1, 0, 0), (5 / 6, 4 / 3, 1 / 3, 1 / 2), 2),  # a newcomer takes from the first, but the third is weakest
        ((0, 0, 0, 0), (4 / 3, 4 / 3, 1 / 3, 0), 9),  # the newcomer is the weakest: rejected
        ((1, 0, 0, 0), (5 / 4, 5 / 4, 1 / 4, 1 / 4), 2),  # of equals the one in the lowest slot leaves
    ],
)
def test_replacement_by_hand(row: tuple[int, ...], fitness_of_all: tuple[float, ...], left: int) -> None:
    """Demand is computed over P + 1, newcomer included, and the least fit of them leaves."""
    newcomer = np.array(row, dtype=np.float64)
    assert fitness(np.vstack([THREE_BY_FOUR, newcomer])) == pytest.approx(fitness_of_all)
    niches = full()
    assert niches.offer(9, newcomer) == left
    assert niches.ids == ((0, 1, 2) if left == 9 else (0, 1, 9))
    assert niches.scores.tolist() == [*THREE_BY_FOUR[:2].tolist(), [1, 0, 0, 0] if left == 9 else list(row)]
    assert niches.fitness == pytest.approx(fitness(niches.scores))


@settings(deadline=None)
@given(matrices(), st.integers(1, 4))
def test_fitness_and_attraction_are_always_those_of_the_members(scores: NDArray[np.float64], size: int) -> None:
    """Looked at before and after every offer."""
    niches = Niches(size)
    for id_, row in enumerate(scores):
        niches.offer(id_, row)
        assert np.array_equal(niches.fitness, fitness(scores[list(niches.ids)]))
        assert np.array_equal(niches.attraction(0), attraction(scores[list(niches.ids)], 0))


@settings(deadline=None)
@given(
    st.integers(1, 30).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), max_size=30)),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["graded", "binary"]),
)
def test_the_least_fit_of_all_leaves_bit_by_bit(rows: list[list[float]], alpha: float, kind: Capacities) -> None:
    """Whatever is remembered of the members, the verdict is that of computing everything anew."""
    niches, members = Niches(4, alpha=alpha, capacities=kind), {}
    for id_, row in enumerate(np.array(rows)):
        everybody = [*niches.ids, id_]
        members[id_] = row
        worst = np.argmin(fitness(np.stack([members[each] for each in everybody]), alpha=alpha, kind=kind))
        assert niches.offer(id_, row) == (None if len(everybody) <= 4 else everybody[int(worst)])


@pytest.mark.parametrize(("alpha", "left"), [(1.0, 2), (0.0, 9)])
def test_competition_keeps_a_specialist_that_plain_sums_reject(alpha: float, left: int) -> None:
    niches = Niches(3, alpha=alpha)
    for id_, row in enumerate([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]):
        niches.offer(id_, np.array(row, dtype=np.float64))
    assert niches.offer(9, np.array([0.0, 0, 0, 1])) == left


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 5), max_size=30))
def test_coverage_never_falls_where_there_are_no_fewer_places_than_samples(rows: list[tuple[float, ...]]) -> None:
    """P + 1 members share at most P samples, so the least fit has less than one: it is nobody's only solver."""
    niches = Niches(5)
    covered = np.zeros(5, dtype=bool)
    for id_, row in enumerate(rows):
        niches.offer(id_, np.array(row))
        now = niches.scores.any(axis=0)
        assert np.all(now >= covered)
        covered = now


@settings(deadline=None)
@given(matrices(), st.integers(1, 4))
def test_an_archive_holds_the_rows_of_its_ids(scores: NDArray[np.float64], size: int) -> None:
    niches = Niches(size)
    for id_, row in enumerate(scores):
        left = niches.offer(id_, row)
        assert (left is None) == (id_ < size)
        assert left not in niches.ids
        assert np.array_equal(niches.scores, scores[list(niches.ids)])


def test_a_rescaled_archive_competes_on_what_differs() -> None:
    """The members' own range counts: 10 against 30 is 0 against 1."""
    niches = Niches(2, normaliser="min_max")
    niches.offer(0, np.array([10.0, 5.0]))
    niches.offer(1, np.array([30.0, 5.0]))
    assert niches.competing.tolist() == [[0, 0], [1, 0]]
    assert niches.fitness == pytest.approx((0, 1))
    assert niches.offer(2, np.array([20.0, 9.0])) == 0
