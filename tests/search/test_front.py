"""The growing front and its volume agree with brute force and with moocore's exact hypervolume."""

from __future__ import annotations

import math

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.search import Archive
from evomerge.search.front import Front, gain, hypervolume

Points = list[tuple[float, ...]]


@st.composite
def point_lists(draw: st.DrawFn) -> Points:
    """Draw points of one to five objectives: coarse ones with many ties, or fine ones; some lie below the reference."""
    size = draw(st.integers(1, 5))
    coarse = st.integers(-1, 4).map(lambda k: k / 4)
    fine = st.floats(-0.5, 1.0).map(lambda x: round(x, 6))
    return draw(st.lists(st.tuples(*[draw(st.sampled_from([coarse, fine]))] * size), min_size=1, max_size=25))


def exact(points: Points, reference: tuple[float, ...]) -> float:
    inside = [point for point in points if all(x > r for x, r in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in inside) - reference[0]
    return float(moocore.hypervolume(np.array(inside), ref=np.array(reference), maximise=True))


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


@given(point_lists())
@settings(deadline=None, max_examples=150)
def test_gains_add_up_to_the_exact_hypervolume_after_every_point(points: Points) -> None:
    reference = (0.0,) * len(points[0])
    total = 0.0
    for count, point in enumerate(points, start=1):
        added = gain(np.array(points[: count - 1]).reshape(count - 1, len(reference)), point, reference)
        assert added >= 0.0
        total += added
        assert math.isclose(total, exact(points[:count], reference), rel_tol=1e-9, abs_tol=1e-9)


@given(point_lists())
@settings(deadline=None, max_examples=150)
def test_the_archives_history_has_the_exact_hypervolume_of_every_moment(points: Points) -> None:
    reference = (0.0,) * len(points[0])
    archive = Archive([f"o{index}" for index in range(len(reference))], reference=reference)
    for number, point in enumerate(points):
        archive.add(number, point)
    for count, moment in enumerate(archive.history, start=1):
        assert math.isclose(moment.hypervolume, exact(points[:count], reference), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(archive.hypervolume(), archive.hypervolume(reference), rel_tol=1e-9, abs_tol=1e-9)


@given(point_lists())
@settings(deadline=None, max_examples=150)
def test_a_front_holds_what_nothing_dominates_and_says_what_it_covers(points: Points) -> None:
    front = Front()
    for number, point in enumerate(points):
        before = points[:number]
        assert front.covers(point) == any(dominates(other, point) or other == point for other in before)
        assert front.add(number, point) == (not any(dominates(other, point) for other in before))
    expected = [n for n, point in enumerate(points) if not any(dominates(other, point) for other in points)]
    assert sorted(front.ids) == expected
    assert len(front) == len(expected)
    assert [tuple(row) for row in front.points.tolist()] == [points[number] for number in front.ids]


def test_many_small_gains_lose_no_accuracy() -> None:
    """A front of a thousand points in three objectives, added one by one in random order."""
    draw = np.random.Generator(np.random.Philox(0))
    points = draw.random((1000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    archive = Archive(["a", "b", "c"], reference=(0.0, 0.0, 0.0))
    for number, point in enumerate(points.tolist()):
        archive.add(number, point)
    assert archive.hypervolume() == pytest.approx(hypervolume(points, (0.0, 0.0, 0.0)), rel=1e-12)
    assert len(archive.front()) == 1000
