"""What a user's own scorer returns, read: scores per sample, and the objectives that they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.fitness.expressions import Dual, Expression, Metric, evaluate, grows_with, metrics_of, parse_expression

Scores = ArrayLike | Mapping[str, ArrayLike]
"""One number a sample (array, tensor or list; booleans count as 0 and 1), or that for each of several metrics."""

METRIC = "score"
"""The metric's name where a scorer returns a plain array."""


class SampleScores:
    """Reads the scores of one model after the other, of the same samples each time.

    The first scores fix the metrics and their numbers of samples.

    Args:
        objectives: expressions over the metrics, all to be maximised; None: the mean of each metric.

    Raises:
        ConfigError: for an expression that is none, or no objective.

    Example:
        >>> read = SampleScores()
        >>> samples, objectives = read({"math": [1.0, 0.0], "japanese": [True, True]})
        >>> objectives
        {'math': 0.5, 'japanese': 1.0}
    """

    def __init__(self, objectives: Sequence[str] | None = None) -> None:
        if objectives is not None and (isinstance(objectives, str) or not objectives):
            raise ConfigError(f"objectives: expected a list of expressions such as ['{METRIC}'], got {objectives!r}")
        self._expressions = None if objectives is None else {text: parse_expression(text) for text in objectives}
        self._sizes: dict[str, int] = {}

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics that an objective grows with, each once; none where no objective was named: then it is all."""
        expressions = (self._expressions or {}).values()
        return tuple(dict.fromkeys(name for expression in expressions for name in grows_with(expression)))

    def __call__(self, scores: Scores) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """Return metric -> one score a sample, and objective -> value.

        Raises:
            ConfigError: for scores that are not one finite number a sample, that are of other metrics or numbers of
                samples than before, or objectives that are not finite or name no metric.
        """
        given = scores if isinstance(scores, Mapping) else {METRIC: scores}
        samples = {name: _column(name, values) for name, values in given.items()}
        means = {name: _mean(name, column) for name, column in samples.items()}
        if not self._sizes:
            self._start(samples)
        self._check(samples)
        return samples, means if self._expressions is None else self._objectives(self._expressions, means)

    def _start(self, samples: Mapping[str, NDArray[np.float64]]) -> None:
        if not samples:
            raise ConfigError("the scorer returned no metric; return an array with one score a sample")
        for text, expression in (self._expressions or {}).items():
            for name in metrics_of(expression):
                if name not in samples:
                    raise ConfigError(f"objective {text!r}: no metric {name!r}{did_you_mean(name, samples)}")
        self._sizes = {name: column.size for name, column in samples.items()}

    def _check(self, samples: Mapping[str, NDArray[np.float64]]) -> None:
        if samples.keys() != self._sizes.keys():
            raise ConfigError(
                f"the scorer returned {_listed(samples)}, and {_listed(self._sizes)} before; return the same metrics "
                "for every model"
            )
        for name, column in samples.items():
            if column.size != self._sizes[name]:
                raise ConfigError(
                    f"scores of {name!r}: {column.size} samples, and {self._sizes[name]} before; score every model on "
                    "the same samples in the same order"
                )

    def _objectives(self, expressions: Mapping[str, Expression], means: Mapping[str, float]) -> dict[str, float]:
        objectives = {
            text: means[expression.name] if isinstance(expression, Metric) else _value(expression, means)
            for text, expression in expressions.items()
        }
        for text, value in objectives.items():
            if not math.isfinite(value):
                raise ConfigError(f"objective {text!r} is not finite (a division by zero); write it otherwise")
        return objectives


def _column(name: str, values: Any) -> NDArray[np.float64]:
    if hasattr(values, "detach"):
        values = _numbers(values)
    try:
        # A copy: a scorer may fill one array again and again.
        column = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(
            f"scores of {name!r}: expected one number a sample, got {type(values).__name__}; return an array"
        ) from None
    if column.ndim != 1 or not column.size:
        what = "a single number" if column.ndim == 0 else f"an array of shape {column.shape}"
        raise ConfigError(f"scores of {name!r}: expected one number a sample, got {what}; return shape (samples,)")
    return column


def _numbers(tensor: Any) -> Any:
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):
        # On another device, of a type that NumPy lacks, or with a gradient.
        return tensor.detach().double().cpu().numpy()


def _mean(name: str, column: NDArray[np.float64]) -> float:
    finite = np.isfinite(column)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ConfigError(
            f"scores of {name!r}: {column[first]} for sample {first}; every score must be finite, so give a broken "
            "model a low one"
        )
    return float(np.add.reduce(column)) / column.size


def _value(expression: Expression, means: Mapping[str, float]) -> float:
    return evaluate(expression, lambda name: Dual(means[name])).value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
