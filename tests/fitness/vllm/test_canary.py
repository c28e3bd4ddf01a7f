"""What answers of the canary prompt are accepted, without an engine."""

from __future__ import annotations

import math

import pytest

from evomerge.errors import EvaluationError, InfeasibleError
from evomerge.fitness.vllm.canary import Answers, Canary

ONE, OTHER = (-1.0, -2.0), (-1.0, -2.5)


class SuspicionError(Exception):
    """The suspicion was put to the engine."""


def answers(values: tuple[float, ...], *, version: str = "v") -> Answers:
    return Answers(values, frozenset({version}))


def judge(canary: Canary, fingerprint: str, given: Answers) -> None:
    def settle(_: Answers) -> None:
        raise SuspicionError

    canary.judge(fingerprint, "v", given, settle)


def test_other_weights_with_other_answers_and_the_same_with_the_same_are_accepted() -> None:
    canary = Canary(0.0)
    for _ in range(2):
        judge(canary, "a", answers(ONE))
        judge(canary, "b", answers(OTHER))


def test_the_same_weights_with_other_answers_are_refused() -> None:
    canary = Canary(0.0)
    judge(canary, "a", answers(ONE))
    judge(canary, "b", answers(OTHER))
    with pytest.raises(EvaluationError, match="same weights"):
        judge(canary, "a", answers((-1.0, math.nextafter(-2.0, 0))))


def test_a_device_that_rounds_differently_each_time_is_given_its_tolerance() -> None:
    canary = Canary(1e-2)
    judge(canary, "a", answers(ONE))
    judge(canary, "a", answers((-1.001, -2.0)))
    with pytest.raises(EvaluationError, match="same weights"):
        judge(canary, "a", answers(OTHER))


def test_other_weights_with_the_same_answers_are_a_suspicion_once() -> None:
    canary = Canary(0.0)
    judge(canary, "a", answers(ONE))
    with pytest.raises(SuspicionError):
        judge(canary, "b", answers(ONE))
    canary.judge("b", "v", answers(ONE), lambda _: None)
    judge(canary, "a", answers(ONE))
    judge(canary, "b", answers(ONE))


def test_other_versions_are_refused() -> None:
    with pytest.raises(EvaluationError, match="instead of 'v'"):
        judge(Canary(0.0), "a", answers(ONE, version="u"))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_answers_that_are_not_finite_are_the_candidates_fault(value: float) -> None:
    """And are remembered all the same: NaN equals NaN here."""
    canary = Canary(0.0)
    for _ in range(2):
        with pytest.raises(InfeasibleError, match="logits"):
            judge(canary, "a", answers((-1.0, value)))
    with pytest.raises(EvaluationError, match="same weights"):
        judge(canary, "a", answers(ONE))
