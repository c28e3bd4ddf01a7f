"""The archive agrees with brute force and with areas worked out by hand, in whatever order it is filled."""

import itertools
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.search import Archive
from evomerge.search.archive import HistoryPoint

NAMES = ("a", "b", "c", "d", "e")
GRID = st.integers(0, 5).map(lambda k: k / 5)
"""Coarse values, so that ties, duplicates and dominated points are common."""


@st.composite
def candidates(draw: st.DrawFn) -> list[tuple[tuple[float, ...], bool]]:
    """Draw objectives and feasibility of up to a dozen candidates, with one to five objectives."""
    num_objectives = draw(st.integers(1, 5))
    return draw(st.lists(st.tuples(st.tuples(*[GRID] * num_objectives), st.booleans()), min_size=1, max_size=12))


def filled(points: list[tuple[tuple[float, ...], bool]], order: list[int] | None = None, **options: object) -> Archive:
    archive = Archive(NAMES[: len(points[0][0])], **options)
    for id_ in order or range(len(points)):
        archive.add(id_, points[id_][0], feasible=points[id_][1])
    return archive


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def grid_volume(points: list[tuple[float, ...]]) -> float:
    """Count the cells of a grid of fifths that some point dominates."""
    num_objectives = len(points[0])
    cells = itertools.product(range(5), repeat=num_objectives)
    covered = sum(any(all(x * 5 > c + 0.5 for x, c in zip(p, cell, strict=True)) for p in points) for cell in cells)
    return covered / 5**num_objectives


@settings(deadline=None)
@given(candidates())
def test_front_agrees_with_brute_force(points: list[tuple[tuple[float, ...], bool]]) -> None:
    """The front is every feasible candidate that no feasible one dominates, duplicates included, by id."""
    feasible = {id_: values for id_, (values, ok) in enumerate(points) if ok}
    expected = tuple(
        id_ for id_, values in feasible.items() if not any(dominates(other, values) for other in feasible.values())
    )
    assert filled(points).front() == expected


@settings(deadline=None)
@given(candidates(), st.randoms(use_true_random=False))
def test_views_do_not_depend_on_the_order_of_adding(
    points: list[tuple[tuple[float, ...], bool]], random: Random
) -> None:
    """Front, best, knee and the volume over a given reference are functions of the set."""
    order = list(range(len(points)))
    random.shuffle(order)
    reference = (0.0,) * len(points[0][0])
    one, other = filled(points, reference=reference), filled(points, order, reference=reference)
    assert one.front() == other.front()
    assert (one.best(), one.knee(), one.best_per_objective()) == (
        other.best(),
        other.knee(),
        other.best_per_objective(),
    )
    assert math.isclose(one.hypervolume(), other.hypervolume(), abs_tol=1e-12)


@settings(deadline=None)
@given(candidates())
def test_hypervolume_agrees_with_counting_cells(points: list[tuple[tuple[float, ...], bool]]) -> None:
    """Points on a grid of fifths dominate whole cells."""
    archive = filled(points)
    feasible = [values for values, ok in points if ok]
    expected = grid_volume(feasible) if feasible else 0.0
    assert math.isclose(archive.hypervolume(), expected, abs_tol=1e-9)


@settings(deadline=None)
@given(candidates())
def test_history_is_monotone_and_complete(points: list[tuple[tuple[float, ...], bool]]) -> None:
    """One point an evaluation, in order; best and hypervolume never fall; the last is the present."""
    archive = filled(points)
    history = archive.history
    assert [point.id for point in history] == list(range(len(points)))
    for earlier, later in itertools.pairwise(history):
        assert earlier.hypervolume <= later.hypervolume
        assert earlier.best is None or (later.best is not None and earlier.best <= later.best)
    assert math.isclose(history[-1].hypervolume, archive.hypervolume(), abs_tol=1e-12)
    best = archive.best()
    if best is None:
        assert history[-1] == HistoryPoint(len(points) - 1, None, None, 0.0)
    else:
        values = archive.entry(best).objectives
        assert history[-1].best == pytest.approx(sum(values) / len(values))
        assert history[-1].best_per_objective == tuple(
            archive.entry(id_).objectives[k] for k, id_ in enumerate(archive.best_per_objective().values())
        )


@settings(deadline=None)
@given(candidates())
def test_best_and_knee_lie_on_the_front(points: list[tuple[tuple[float, ...], bool]]) -> None:
    """Whatever `best`, `knee` and `best_per_objective` name is on the front."""
    archive = filled(points)
    front = archive.front()
    if not front:
        assert (archive.best(), archive.knee(), archive.best_per_objective()) == (None, None, {})
        return
    assert archive.best() in front
    assert archive.knee() in front
    assert set(archive.best_per_objective().values()) <= set(front)


def test_hypervolume_of_hand_cases() -> None:
    """Areas and volumes worked out on paper."""
    two = Archive(("x", "y"))
    for id_, values in enumerate([(0.2, 0.8), (0.5, 0.5), (0.8, 0.2)]):
        two.add(id_, values)
    # Strips from the left: 0.2 wide and 0.8 high, 0.3 by 0.5, 0.3 by 0.2.
    assert two.hypervolume() == pytest.approx(0.37)
    # Above (0.4, 0.1): 0.4*0.1 + 0.1*(0.5-0.2); the first point lies outside.
    assert two.hypervolume((0.4, 0.1)) == pytest.approx(0.07)
    three = Archive(("x", "y", "z"))
    three.add(0, (1.0, 0.5, 0.5))
    three.add(1, (0.5, 1.0, 1.0))
    # 0.25 + 0.5 - their overlap 0.5*0.5*0.5
    assert three.hypervolume() == pytest.approx(0.625)
    one = Archive(("x",))
    one.add(0, (0.25,))
    one.add(1, (0.75,))
    assert one.hypervolume() == 0.75


def test_reference_is_fixed_by_the_first_feasible_candidate() -> None:
    """0 for what is not negative, twice the value for what is: costs count from twice the first one."""
    archive = Archive(("accuracy", "-tokens"))
    archive.add(0, (0.9, -1.0), feasible=False)
    assert archive.reference is None
    assert archive.hypervolume() == 0.0
    archive.add(1, (0.5, -100.0))
    assert archive.reference == (0.0, -200.0)
    assert archive.hypervolume() == pytest.approx(50.0)
    archive.add(2, (0.9, -500.0))
    archive.add(3, (0.4, -10.0))
    assert archive.front() == (1, 2, 3)
    assert archive.reference == (0.0, -200.0)
    assert [point.hypervolume for point in archive.history] == pytest.approx([0.0, 50.0, 50.0, 86.0])
    free = Archive(("accuracy", "-extra"))
    free.add(0, (0.0, 0.0))
    assert free.reference == (0.0, -1.0)


def test_knee_is_farthest_from_the_line_between_the_extremes() -> None:
    """On a bulging front, the bulge, whatever the objectives' units."""
    archive = Archive(("x", "y"))
    for id_, (x, y) in enumerate([(0.0, 1.0), (0.5, 0.9), (0.8, 0.7), (0.9, 0.3), (1.0, 0.0)]):
        archive.add(id_, (x, 1000.0 * y))
    assert archive.knee() == 2


def test_knee_of_three_objectives_is_farthest_from_the_plane_through_the_extremes() -> None:
    archive = Archive(("x", "y", "z"))
    for id_, values in enumerate(
        [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.4, 0.4), (0.6, 0.6, 0.6), (0.9, 0.05, 0.05)]
    ):
        archive.add(id_, values)
    assert archive.front() == (0, 1, 2, 4, 5)
    assert archive.knee() == 4


def test_knee_of_small_fronts() -> None:
    """Nothing: None; one point: that one; two points: both are extremes, the one that scalarises higher."""
    archive = Archive(("x", "y"))
    assert archive.knee() is None
    archive.add(5, (0.1, 0.9))
    assert archive.knee() == 5
    archive.add(3, (0.9, 0.2))
    assert archive.knee() == 3


def test_ties_go_to_the_lowest_id() -> None:
    """Also when it is added later."""
    archive = Archive(("x", "y"))
    archive.add(7, (0.5, 0.5))
    archive.add(2, (0.5, 0.5))
    assert archive.front() == (2, 7)
    assert archive.best() == 2
    assert archive.best_per_objective() == {"x": 2, "y": 2}
    assert archive.knee() == 2


def test_best_follows_the_rule() -> None:
    """Mean, minimum or weights, the archive's own by default."""
    archive = Archive(("x", "y"), scalarize="min")
    archive.add(0, (1.0, 0.2))
    archive.add(1, (0.5, 0.45))
    archive.add(2, (0.1, 0.9))
    assert archive.best() == 1
    assert archive.best("mean") == 0
    assert archive.best((0.0, 1.0)) == 2
    assert archive.history[-1].best == 0.45


def test_infeasible_candidates_count_in_the_history_alone() -> None:
    archive = Archive(("x",))
    archive.add(0, (math.nan,), feasible=False)
    archive.add(1, (), feasible=False)
    assert archive.front() == ()
    assert len(archive.history) == 2
    assert [entry.feasible for entry in archive.entries] == [False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_never_enter(bad: float) -> None:
    """A refused candidate leaves no trace."""
    archive = Archive(("x", "y"))
    with pytest.raises(ValueError, match="candidate 0: objectives must be finite"):
        archive.add(0, (0.5, bad))
    assert archive.entries == ()
    archive.add(0, (0.5, 0.5))


def test_misuse_is_named() -> None:
    with pytest.raises(ConfigError, match="give 1 to 5 objectives, got 0"):
        Archive(())
    with pytest.raises(ConfigError, match="give 1 to 5 objectives, got 6"):
        Archive((*NAMES, "f"))
    with pytest.raises(ConfigError, match="1 weights for 2 objectives"):
        Archive(("x", "y"), scalarize=(1.0,))
    with pytest.raises(ValueError, match="expected 2 objectives, got 1"):
        Archive(("x", "y"), reference=(0.0,))
    archive = Archive(("x", "y"))
    archive.add(0, (0.1, 0.2), (0.01, 0.02))
    assert archive.entry(0).stderrs == (0.01, 0.02)
    with pytest.raises(ValueError, match="candidate 0 is in the archive already"):
        archive.add(0, (0.1, 0.2))


def test_five_objectives_and_many_candidates() -> None:
    """Random points: the volume is that of a Monte Carlo estimate, within its error."""
    rng = np.random.default_rng(0)
    archive = Archive(NAMES)
    points = rng.random((200, 5)) ** 0.5
    for id_, values in enumerate(points):
        archive.add(id_, values.tolist())
    probes = rng.random((20000, 5))
    estimate = np.mean([(points > probe).all(axis=1).any() for probe in probes])
    assert archive.hypervolume() == pytest.approx(estimate, abs=0.02)
