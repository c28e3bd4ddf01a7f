"""Objectives and constraints: expressions over metrics, with standard errors from per-sample scores.

The mean of an expression is the expression of the metrics' means. Its standard error is the delta method's:
with the gradient g of the expression at the means, each task contributes the variance of the mean of `sum_k
g_k x_k` over its documents (x_k: the document's score on metric k), so that metrics of one task covary as
their documents do, and tasks are independent of each other. For a single metric this is the usual
sqrt(variance / n), with n - 1 in the variance (Miller 2024, "Adding error bars to evals",
arXiv:2411.00640).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError, InfeasibleError
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.expressions import (
    COMPARE,
    Comparison,
    Dual,
    Expression,
    evaluate,
    grows_with,
    metrics_of,
    parse_comparison,
    parse_expression,
)
from evomerge.fitness.types import Evaluation

FACTS = ("parameters", "hops")
"""Plain facts that every engine gives, of the model as it would be exported: its size and its number of layers."""
RESPONSE_TOKENS = "response_tokens"
"""Per-sample metric of every generation task; bare (or as `mean_response_tokens`): its mean over those
tasks."""
_ALIASES = (RESPONSE_TOKENS, f"mean_{RESPONSE_TOKENS}")


@dataclass(frozen=True, slots=True)
class ObjectiveValue:
    """What one objective came to."""

    mean: float
    stderr: float
    """Standard error of the mean; 0 where nothing random entered (facts), or a single document tells
    nothing."""
    samples: int
    """Documents that took part."""


@dataclass(frozen=True, slots=True)
class Objective:
    """An expression to be maximised."""

    name: str
    """Its text, as it stands in the search file."""
    expression: Expression

    def measure(self, evaluation: Evaluation) -> ObjectiveValue:
        """Compute the objective from an evaluation's per-sample scores.

        Raises:
            ConfigError: when the evaluation lacks one of its metrics.
            InfeasibleError: when the value is not finite (a division by zero).
        """
        return _measure(self.name, self.expression, evaluation)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A comparison that a feasible candidate meets, judged on means."""

    text: str
    comparison: Comparison

    def violation(self, evaluation: Evaluation) -> float:
        """Return by how much the constraint is missed: 0 when it is met, else a positive number.

        Raises:
            ConfigError: when the evaluation lacks one of its metrics.
            InfeasibleError: when a side is not finite.
        """
        left = _measure(self.text, self.comparison.left, evaluation).mean
        right = _measure(self.text, self.comparison.right, evaluation).mean
        if COMPARE[self.comparison.symbol](left, right):
            return 0.0
        # A strict comparison is also missed by equal sides: the violation is then positive, however small.
        return max(abs(left - right), sys.float_info.min)


@dataclass(frozen=True, slots=True)
class Objectives:
    """Everything that a search wants: objectives to maximise under constraints."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def parse(cls, config: FitnessConfig) -> Objectives:
        """Parse the expressions of a search file.

        Raises:
            ConfigError: for anything but arithmetic over metrics, or an objective that stands twice.
        """
        for text in config.objectives:
            if config.objectives.count(text) > 1:
                raise ConfigError(f"objective {text!r} stands twice; each objective may be named once")
        return cls(
            tuple(Objective(text, parse_expression(text)) for text in config.objectives),
            tuple(Constraint(text, parse_comparison(text)) for text in config.constraints),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' texts, in order."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics that an objective grows with, each once, in reading order: what candidates compete for."""
        return tuple(dict.fromkeys(name for each in self.objectives for name in grows_with(each.expression)))

    @property
    def metrics(self) -> frozenset[str]:
        """Every metric or fact that an objective or constraint names."""
        found: set[str] = set()
        for objective in self.objectives:
            found.update(metrics_of(objective.expression))
        for constraint in self.constraints:
            found.update(metrics_of(constraint.comparison.left))
            found.update(metrics_of(constraint.comparison.right))
        return frozenset(found)

    def check(self, available: Mapping[str, Iterable[str] | None]) -> None:
        """Check every named metric against what a suite measures.

        Args:
            available: task to the names of its metrics (`exact_match`), or None where they are only known
                once the task has run (tasks written in Python).

        Raises:
            ConfigError: for a name that is no metric, with the nearest one; or when nothing named is
                measured.
        """
        known = _known(available)
        for text, names in self._named():
            if not names:
                raise ConfigError(f"{text!r} names no metric; expected at least one, for instance {_first(known)!r}")
            for name in names:
                if name not in known and not _may_exist(name, available):
                    raise ConfigError(f"{text!r}: no metric {name!r}{_hint(text, name, known)}")

    def measure(self, evaluation: Evaluation) -> tuple[ObjectiveValue, ...]:
        """Compute every objective, in order.

        Raises:
            ConfigError: when the evaluation lacks a metric.
            InfeasibleError: when an objective is not finite.
        """
        return tuple(objective.measure(evaluation) for objective in self.objectives)

    def violations(self, evaluation: Evaluation) -> tuple[float, ...]:
        """Return each constraint's violation (>= 0, 0 when met), in order."""
        return tuple(constraint.violation(evaluation) for constraint in self.constraints)

    def violation(self, evaluation: Evaluation) -> float:
        """Return the sum of all violations, >= 0; 0 when every constraint is met."""
        return math.fsum(self.violations(evaluation))

    def _named(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        for objective in self.objectives:
            yield objective.name, tuple(metrics_of(objective.expression))
        for constraint in self.constraints:
            sides = (constraint.comparison.left, constraint.comparison.right)
            yield constraint.text, tuple(name for side in sides for name in metrics_of(side))


def task_of(metric: str, tasks: Iterable[str]) -> str:
    """Return the task of a metric: the longest known task that its name starts with, else its first part."""
    owners = [task for task in tasks if metric.startswith(f"{task}.")]
    return max(owners, key=len) if owners else metric.split(".", 1)[0]


def _measure(text: str, expression: Expression, evaluation: Evaluation) -> ObjectiveValue:
    result = evaluate(expression, lambda name: _resolve(text, name, evaluation))
    if not math.isfinite(result.value):
        raise InfeasibleError(f"{text!r} is not finite for this recipe (a division by zero)")
    by_task: dict[str, list[str]] = {}
    for metric in result.gradient:
        by_task.setdefault(task_of(metric, evaluation.documents), []).append(metric)
    variance, documents = 0.0, 0
    for metrics in by_task.values():
        # Columns of one task are aligned by document, so their covariances are those of the linearised sum.
        linear = sum(result.gradient[name] * evaluation.samples[name] for name in metrics)
        values: NDArray[np.float64] = np.asarray(linear, dtype=np.float64)
        documents += values.size
        if values.size > 1:
            variance += float(np.var(values, ddof=1)) / values.size
    return ObjectiveValue(mean=result.value, stderr=math.sqrt(variance), samples=documents)


def _resolve(text: str, name: str, evaluation: Evaluation) -> Dual:
    samples = evaluation.samples.get(name)
    if samples is not None:
        return Dual(_mean(samples), {name: 1.0})
    if name in evaluation.facts:
        return Dual(float(evaluation.facts[name]))
    if name in _ALIASES:
        parts = [key for key in evaluation.samples if key.endswith(f".{RESPONSE_TOKENS}")]
        if parts:
            share = 1.0 / len(parts)
            mean = math.fsum(_mean(evaluation.samples[key]) for key in parts) * share
            return Dual(mean, dict.fromkeys(parts, share))
    hint = _hint(text, name, [*evaluation.samples, *evaluation.facts])
    raise ConfigError(f"{text!r}: the evaluation has no metric {name!r} with one number a document{hint}")


def _mean(samples: NDArray[np.float64]) -> float:
    if samples.size == 0:
        raise ConfigError("a metric has no documents; give every split a positive share of them")
    return float(np.mean(samples, dtype=np.float64))


def _known(available: Mapping[str, Iterable[str] | None]) -> list[str]:
    known = [f"{task}.{metric}" for task, metrics in available.items() for metric in metrics or ()]
    if any(name.endswith(f".{RESPONSE_TOKENS}") for name in known):
        known.extend(_ALIASES)
    return [*known, *FACTS]


def _may_exist(name: str, available: Mapping[str, Iterable[str] | None]) -> bool:
    return any(metrics is None and name.startswith(f"{task}.") for task, metrics in available.items())


def _first(known: Iterable[str]) -> str:
    return next(iter(known), "task.metric")


def _hint(text: str, name: str, known: Iterable[str]) -> str:
    words = list(known)
    for word in words:
        plain = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", word)
        if not plain and word in text and name != word:
            return f"; write a name with other signs in quotes: '\"{word}\"'"
    return did_you_mean(name, words)
