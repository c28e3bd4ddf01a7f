"""Objectives: means and standard errors from per-sample scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.objectives import Objectives
from evomerge.fitness.types import Evaluation

SCORES = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
LENGTHS = np.array([3.0, 5.0, 4.0, 9.0, 2.0])
OTHER = np.array([0.25, 0.5, 0.5, 1.0])


def parsed(*objectives: str, constraints: tuple[str, ...] = ()) -> Objectives:
    return Objectives.parse(FitnessConfig(suite="s.yaml", objectives=objectives, constraints=constraints))


def evaluation(**facts: float) -> Evaluation:
    return Evaluation(
        split="search",
        samples={
            "a.acc": SCORES,
            "a.response_tokens": LENGTHS,
            "b.v1.acc": OTHER,
            "b.v1.response_tokens": 2 * OTHER,
        },
        documents={"a": tuple("12345"), "b.v1": tuple("1234")},
        facts=facts,
    )


def stderr(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(values.size))


def test_one_metric_has_its_mean_and_standard_error() -> None:
    (result,) = parsed("a.acc").measure(evaluation())
    assert result.mean == pytest.approx(0.6)
    assert result.stderr == pytest.approx(stderr(SCORES))
    assert result.samples == 5


def test_a_minus_turns_the_mean_and_keeps_the_error() -> None:
    plus, minus = parsed("a.acc", "-a.acc").measure(evaluation())
    assert minus.mean == -plus.mean
    assert minus.stderr == plus.stderr


def test_metrics_of_one_task_covary_by_document() -> None:
    """A linear combination has the error of the combined per-document score; a difference with itself has
    none."""
    both, nothing = parsed("a.acc - 0.1 * a.response_tokens", "a.acc - a.acc").measure(evaluation())
    assert both.stderr == pytest.approx(stderr(SCORES - 0.1 * LENGTHS))
    assert both.samples == 5
    assert nothing.stderr == 0.0


def test_tasks_are_independent() -> None:
    (result,) = parsed("(a.acc + b.v1.acc) / 2").measure(evaluation())
    assert result.stderr == pytest.approx(math.hypot(stderr(SCORES), stderr(OTHER)) / 2)
    assert result.samples == 9


def test_a_ratio_has_the_delta_methods_error() -> None:
    """Var(x/y) = (1/y)^2 Var x + (x/y^2)^2 Var y - 2 (x/y^3) Cov(x, y), all of the means."""
    (result,) = parsed("a.acc / a.response_tokens").measure(evaluation())
    x, y = SCORES.mean(), LENGTHS.mean()
    covariance = np.cov(SCORES, LENGTHS, ddof=1) / 5
    expected = covariance[0, 0] / y**2 + x**2 / y**4 * covariance[1, 1] - 2 * x / y**3 * covariance[0, 1]
    assert result.mean == pytest.approx(x / y)
    assert result.stderr == pytest.approx(math.sqrt(expected))


def test_response_tokens_alone_are_the_mean_over_tasks() -> None:
    first, second = parsed("-mean_response_tokens", "response_tokens").measure(evaluation())
    assert second.mean == pytest.approx((LENGTHS.mean() + 2 * OTHER.mean()) / 2)
    assert first.mean == -second.mean
    assert second.stderr == pytest.approx(math.hypot(stderr(LENGTHS), stderr(2 * OTHER)) / 2)


def test_facts_are_exact() -> None:
    (result,) = parsed("-parameters / 1000").measure(evaluation(parameters=5000.0))
    assert (result.mean, result.stderr, result.samples) == (-5.0, 0.0, 0)


@given(arrays(np.float64, 12, elements=st.floats(-10, 10)), st.permutations(range(12)))
def test_the_order_of_documents_does_not_matter(values: np.ndarray, order: list[int]) -> None:
    results = [
        parsed("t.m * 2 + 1").measure(Evaluation(split="search", samples={"t.m": part}, documents={"t": ()}))[0]
        for part in (values, values[order])
    ]
    assert results[0].mean == pytest.approx(results[1].mean, abs=1e-12)
    assert results[0].stderr == pytest.approx(results[1].stderr, abs=1e-12)
    assert results[0].stderr >= 0


@pytest.mark.parametrize(
    ("constraint", "violation"),
    [
        ("a.acc >= 0.4", 0.0),
        ("a.acc >= 0.6", 0.0),
        ("a.acc >= 0.7", 0.1),
        ("a.acc <= 0.5", 0.1),
        ("a.acc <= 0.6", 0.0),
        ("0.9 < a.acc", 0.3),
        ("a.acc > b.v1.acc", 0.0),
    ],
)
def test_a_violation_is_the_shortfall(constraint: str, violation: float) -> None:
    objectives = parsed("a.acc", constraints=(constraint,))
    assert objectives.violations(evaluation()) == (pytest.approx(violation),)
    assert objectives.violation(evaluation()) == pytest.approx(violation)


def test_a_strict_constraint_is_missed_by_equal_sides() -> None:
    assert parsed("a.acc", constraints=("a.acc > a.acc",)).violation(evaluation()) > 0
    assert parsed("a.acc", constraints=("a.acc >= a.acc",)).violation(evaluation()) == 0


def test_a_division_by_zero_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="division by zero"):
        parsed("a.acc / (a.acc - a.acc)").measure(evaluation())


def test_an_objective_may_stand_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parsed("a.acc", "a.acc")


AVAILABLE = {"sums": ("exact_match", "response_tokens"), "gsm8k": ("exact_match.strict-match",), "code": None}


@pytest.mark.parametrize(
    "text",
    [
        "sums.exact_match",
        "-mean_response_tokens",
        "parameters",
        "code.anything",
        '"gsm8k.exact_match.strict-match"',
    ],
)
def test_names_of_metrics_pass_the_check(text: str) -> None:
    parsed(text).check(AVAILABLE)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sums.exact_mach", "did you mean 'sums.exact_match'"),
        ("sum.exact_match", "did you mean 'sums.exact_match'"),
        ("gsm8k.exact_match.strict-match", "in quotes"),
        ("0.5", "names no metric"),
    ],
)
def test_a_name_that_is_no_metric_is_an_error_with_the_nearest(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parsed(text).check(AVAILABLE)


def test_constraints_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"no metric 'x\.y'"):
        parsed("parameters", constraints=("x.y > 1",)).check(AVAILABLE)


def test_a_metric_that_an_evaluation_lacks_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'a\.acc'"):
        parsed("a.ac").measure(evaluation())


def test_objectives_and_metrics_are_listed() -> None:
    objectives = parsed("a.acc", "-b.x", constraints=("c.y > d.z",))
    assert objectives.names == ("a.acc", "-b.x")
    assert objectives.metrics == {"a.acc", "b.x", "c.y", "d.z"}


def test_candidates_compete_for_the_metrics_that_an_objective_grows_with() -> None:
    """Not for those that should be small, for constraints, or twice for one."""
    objectives = parsed("a.acc - 0.01 * a.tokens", "-b.x", "(a.acc + c.f1) / parameters", constraints=("d.z > 0.5",))
    assert objectives.wanted == ("a.acc", "c.f1")
    assert parsed("a.acc / (b.x - 1)").wanted == ()
