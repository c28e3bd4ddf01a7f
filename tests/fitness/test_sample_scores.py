"""What a user's own scorer returns: which forms are understood, and which are refused in one sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.fitness.sample_scores import SampleScores


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 0.0, 0.5],
        np.array([1.0, 0.0, 0.5], dtype=np.float32),
        torch.tensor([1.0, 0.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        {"score": [1.0, 0.0, 0.5]},
    ],
)
def test_one_number_a_sample_is_understood_in_every_form(scores: object) -> None:
    samples, objectives = SampleScores()(scores)  # type: ignore[arg-type]
    assert samples["score"].dtype == np.float64
    assert samples["score"].tolist() == [1.0, 0.0, 0.5]
    assert objectives == {"score": 0.5}


def test_booleans_count_as_zero_and_one() -> None:
    assert SampleScores()(torch.tensor([True, False, True, True]))[1] == {"score": 0.75}
    assert SampleScores()([True, False])[1] == {"score": 0.5}


def test_scores_are_copied_from_a_scorer_that_fills_one_array_again_and_again() -> None:
    read, buffer = SampleScores(), np.array([1.0, 0.0])
    first, _ = read(buffer)
    buffer[:] = 0.5
    second, _ = read(buffer)
    assert first["score"].tolist() == [1.0, 0.0]
    assert second["score"].tolist() == [0.5, 0.5]


def test_objectives_are_expressions_over_the_means_of_the_metrics() -> None:
    read = SampleScores(["odd", "(odd + 3 * even) / 4", "-loss"])
    _, objectives = read({"odd": [1.0, 0.0], "even": [1.0, 1.0, 0.0, 0.0, 1.0], "loss": [2.0, 4.0]})
    assert objectives == pytest.approx({"odd": 0.5, "(odd + 3 * even) / 4": 0.575, "-loss": -3.0})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (0.7, "expected one number a sample, got a single number"),
        (torch.tensor(0.7), "a single number"),
        ([[1.0], [0.0]], r"shape \(2, 1\)"),
        ([], r"shape \(0,\)"),
        ({"odd": [1.0], "even": 0.5}, "'even': expected one number a sample"),
        (["right", "wrong"], "expected one number a sample, got list"),
        (None, "single number|NoneType"),
        ([0.5, math.nan], "nan for sample 1"),
        ([math.inf, -math.inf], "inf for sample 0"),
        ({}, "no metric"),
    ],
)
def test_what_is_no_score_per_sample_is_refused(scores: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SampleScores()(scores)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 0.0], "2 samples, and 3 before"),
        ({"other": [1.0, 0.0, 1.0]}, "'other', and 'score' before"),
        ({"score": [1.0, 0.0, 1.0], "more": [1.0]}, "'score', 'more', and 'score' before"),
    ],
)
def test_every_model_is_scored_on_the_same_samples(scores: object, message: str) -> None:
    read = SampleScores()
    read([1.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match=message):
        read(scores)  # type: ignore[arg-type]
    assert read([0.0, 0.0, 1.0])[1] == {"score": pytest.approx(1 / 3)}


def test_objectives_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'even'"):
        SampleScores(["eve"])({"even": [1.0], "odd": [0.0]})
    with pytest.raises(ConfigError, match="division by zero"):
        SampleScores(["even / odd"])({"even": [1.0], "odd": [0.0]})
    with pytest.raises(ConfigError, match="not arithmetic"):
        SampleScores(["even +"])
    for nothing in ([], "even"):
        with pytest.raises(ConfigError, match="expected a list of expressions"):
            SampleScores(nothing)
