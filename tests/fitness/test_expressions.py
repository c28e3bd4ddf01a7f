"""Expressions: arithmetic over metrics, parsed and never run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.fitness.expressions import (
    Dual,
    Expression,
    evaluate,
    metrics_of,
    parse_comparison,
    parse_expression,
)


def value(text: str, **metrics: float) -> float:
    named = {name.replace("__", "."): number for name, number in metrics.items()}
    return evaluate(parse_expression(text), lambda name: Dual(named[name])).value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.acc", 0.5),
        ("-a.acc", -0.5),
        ("+a.acc", 0.5),
        ("0.5*a.acc + b.acc", 0.5),
        ("0.5 * (a.acc + b.acc) / 2 - 1", -0.8125),
        ("2 - a.acc - b.acc", 1.25),
        ("a.acc / b.acc / 2", 1.0),
        ("1e-1 * a.acc", 0.05),
        ("parameters", 10.0),
        ('"a.acc"', 0.5),
        ("'a,acc'", 0.5),
        ("  a.acc  ", 0.5),
    ],
)
def test_arithmetic_means_what_it_says(text: str, expected: float) -> None:
    assert value(text, a__acc=0.5, b__acc=0.25, parameters=10.0) == pytest.approx(expected)


def test_names_with_other_signs_stand_in_quotes() -> None:
    names = list(metrics_of(parse_expression('"gsm8k.exact_match,strict-match" + "a-b.acc"')))
    assert names == ["gsm8k.exact_match.strict-match", "a-b.acc"]


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("__import__('os').system('true')", "__import__"),
        ("open('x')", "open"),
        ("a.acc ** 2", r"a.acc \*\* 2"),
        ("a.acc if b.acc else 1", "a.acc if b.acc else 1"),
        ("[a.acc]", r"\[a.acc\]"),
        ("a['acc']", "a"),
        ("(lambda: 1)()", "lambda"),
        ("a.acc and b.acc", "and"),
        ("a.acc >= 1", "a.acc >= 1"),
        ("a.acc // 2", "//"),
        ("True", "True"),
        ("None", "None"),
        ("1j", "1j"),
        ("1e999", "1e999"),
        ("''", "''"),
        ("f'{a}'", "f'"),
        ("~a.acc", "~a"),
        ("max(a.acc, b.acc)", "max"),
        ("(a.acc).real.x()", "x"),
        ("x := 3", "not arithmetic"),
        ("import os", "import os"),
        ("a.acc +", "not arithmetic"),
        ("a.acc; b.acc", "not arithmetic"),
        ("", "not arithmetic"),
        ("gsm8k.exact_match,strict_match", "strict_match"),
        ("20_news.acc", "quotes"),
        ("(" * 900 + "a" + ")" * 900, "not arithmetic"),
        ("9" * 5000, "5000 characters"),
        ("\0", "not arithmetic"),
    ],
)
def test_anything_but_arithmetic_is_refused_with_the_piece(text: str, piece: str) -> None:
    with pytest.raises(ConfigError, match=piece):
        parse_expression(text)


@given(st.text(max_size=60))
def test_any_text_is_arithmetic_or_refused(text: str) -> None:
    """No input makes the parser fail otherwise."""
    for parse in (parse_expression, parse_comparison):
        try:
            parse(text)
        except ConfigError:
            continue


@given(
    st.recursive(
        st.sampled_from(["a.acc", "b.acc", "2", "0.25"]),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda part: f"({part[0]} {part[1]} {part[2]})"
        ),
        max_leaves=8,
    )
)
def test_gradients_are_those_of_finite_differences(text: str) -> None:
    expression = parse_expression(text)
    point = {"a.acc": 0.7, "b.acc": 1.3}

    def at(**moved: float) -> Dual:
        places = {**point, **{name.replace("_", "."): number for name, number in moved.items()}}
        return evaluate(expression, lambda name: Dual(places[name], {name: 1.0}))

    result = at()
    if not math.isfinite(result.value) or abs(result.value) > 1e6:
        return
    for name in ("a.acc", "b.acc"):
        step = 1e-6
        high, low = (at(**{name.replace(".", "_"): point[name] + sign * step}).value for sign in (1, -1))
        slope = (high - low) / (2 * step)
        if math.isfinite(slope) and abs(slope) < 1e4:
            assert result.gradient.get(name, 0.0) == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("symbol", [">=", "<=", ">", "<"])
def test_a_constraint_compares_two_expressions(symbol: str) -> None:
    comparison = parse_comparison(f"a.acc + 1 {symbol} 0.5 * b.acc")
    assert comparison.symbol == symbol
    assert list(metrics_of(comparison.left)) == ["a.acc"]
    assert list(metrics_of(comparison.right)) == ["b.acc"]


@pytest.mark.parametrize(
    "text", ["a.acc", "0 < a.acc < 1", "a.acc == 1", "a.acc != 1", "a.acc in b", "a >= 1 or b > 1"]
)
def test_a_constraint_that_is_no_single_comparison_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="constraint"):
        parse_comparison(text)


def test_a_division_by_zero_is_not_a_number() -> None:
    assert math.isnan(value("a.acc / b.acc", a__acc=1.0, b__acc=0.0))


def _depth(expression: Expression) -> int:
    return len(list(metrics_of(expression)))


def test_metrics_are_listed_in_reading_order() -> None:
    assert _depth(parse_expression("-(a.x + b.y) * a.x")) == 3
