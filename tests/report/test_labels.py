from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.report.labels import number, place_labels, plain, spread, with_error, wrapped

finite = st.floats(-1e3, 1e3)


@given(st.lists(finite, max_size=12), st.floats(0.01, 50))
def test_spread_labels_keep_their_order_and_their_distance(values: list[float], gap: float) -> None:
    places = spread(values, gap)
    order = sorted(range(len(values)), key=lambda index: places[index])
    assert [values[index] for index in order] == sorted(values)
    assert all(later - earlier >= gap * (1 - 1e-6) - 1e-9 for earlier, later in pairwise(sorted(places)))


@given(st.lists(finite, max_size=8, unique=True))
def test_labels_that_do_not_touch_stay_where_they_belong(values: list[float]) -> None:
    distances = [later - earlier for earlier, later in pairwise(sorted(values))]
    assert spread(values, min(distances, default=1.0) / 2) == pytest.approx(values)


@given(st.text(max_size=60))
def test_wrapping_loses_no_text_but_spaces_at_the_ends_of_lines(text: str) -> None:
    lines = wrapped(text, width=10, max_lines=100).split("<br>")
    assert "".join("".join(lines).split()) == "".join(plain(text).split())


def test_a_long_name_is_broken_after_its_signs_and_ends_with_an_ellipsis() -> None:
    name = "-(letters.exact_match - digits.exact_match)*(letters.exact_match - digits.exact_match)"
    assert wrapped(name) == "-(letters.exact_match -<br>digits.exact_match)*<br>(letters.exact_match -…"
    assert "0.5" in wrapped("a + 0.5", width=5).split("<br>")


def test_plain_text_shows_markup_as_it_is() -> None:
    assert plain("<b>a</b> & b") == "&lt;b&gt;a&lt;/b&gt; &amp; b"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.7312, "0.731"), (-12.5, "-12.500"), (4.5e-5, "4.5e-05"), (12345.678, "1.235e+04")],
)
def test_numbers_show_three_decimals_or_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_an_error_has_as_many_decimals_as_its_mean_and_zero_has_no_sign() -> None:
    assert with_error(0.7312, 0.02) == "0.731 ± 0.020"
    assert with_error(-0.0001, 0.001) == "0.000 ± 0.001"
    assert with_error(0.5, None) == "0.500"


def test_points_at_one_place_share_a_label_and_near_ones_are_labelled_on_different_sides() -> None:
    points = [("math", 0.5, 0.5), ("ja", 0.505, 0.5), ("code", 0.53, 0.51), ("edge", 1.0, 0.2)]
    labels = place_labels(points, (0.0, 1.0), (0.0, 1.0))
    assert [label.text for label in labels] == ["math, ja", "code", "edge"]
    assert labels[0].position != labels[1].position
    assert labels[2].position == "middle left"


def test_no_points_need_no_labels() -> None:
    assert place_labels([], (0.0, 1.0), (0.0, 1.0)) == []
