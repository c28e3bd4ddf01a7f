"""From an outcome's per-sample scores to one row of numbers that can compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.search.types import Outcome


class SampleRows:
    """Lays the scores of chosen metrics end to end, the same samples for every candidate.

    The first row fixes the metrics and the number of samples.

    Args:
        metrics: names of per-sample scores, all of which must be there; with a minus in front, less is better.
        default: those of these names that are there, where `metrics` is empty; where this is empty too, all scores.
        unit: whether scores must lie in [0, 1].
    """

    def __init__(self, metrics: Sequence[str] = (), *, default: Sequence[str] = (), unit: bool = True) -> None:
        self._metrics = tuple(metrics)
        self._default = tuple(default)
        self._unit = unit
        self._sizes: dict[str, int] = {}

    @property
    def sizes(self) -> Mapping[str, int]:
        """The metrics and their numbers of samples, in the order of a row; empty before the first."""
        return dict(self._sizes)

    def row(self, who: int, outcome: Outcome) -> NDArray[np.float64]:
        """Return a candidate's scores, shape (samples,), finite.

        Raises:
            ConfigError: when there are no scores per sample, when a metric is missing, when the number of samples is
                not that of the candidates before, or when a score is not in range.
        """
        sizes = self._sizes or dict.fromkeys(self._choose(who, outcome), -1)
        columns = {name: self._column(who, name, outcome) for name in sizes}
        for name, column in columns.items():
            if sizes[name] not in (-1, column.size):
                raise ConfigError(
                    f"candidate {who}: {name} has {column.size} samples, those before had {sizes[name]}; score every "
                    "candidate on the same samples"
                )
        self._sizes = {name: column.size for name, column in columns.items()}
        return np.concatenate(list(columns.values()))

    def _choose(self, who: int, outcome: Outcome) -> tuple[str, ...]:
        if not outcome.samples:
            raise ConfigError(
                f"candidate {who} has no scores per sample, on which candidates compete; give Outcome.samples an array "
                "a metric, or take a searcher that needs none, such as cma_es"
            )
        if self._metrics:
            return self._metrics
        chosen = tuple(name for name in self._default if name in outcome.samples)
        if self._default and not chosen:
            raise ConfigError(
                f"none of {', '.join(self._default)} has scores per sample; name some of "
                f"{', '.join(sorted(outcome.samples))} in search.options.metrics"
            )
        return chosen or tuple(sorted(outcome.samples))

    def _column(self, who: int, name: str, outcome: Outcome) -> NDArray[np.float64]:
        metric = name.removeprefix("-")
        if metric not in outcome.samples:
            hint = did_you_mean(metric, outcome.samples)
            raise ConfigError(f"search.options.metrics: candidate {who} has no scores per sample of {metric!r}{hint}")
        column = np.asarray(outcome.samples[metric], dtype=np.float64)
        if column.ndim != 1 or not column.size:
            raise ConfigError(
                f"candidate {who}: {metric} has shape {column.shape}; expected one number a sample, shape (samples,)"
            )
        if name != metric:
            column = -column
        low, high = column.min(), column.max()
        if not np.isfinite(low + high):
            raise ConfigError(f"candidate {who}: {metric} has a score that is not finite; give a number a sample")
        if self._unit and (low < 0 or high > 1):
            worst = low if low < 0 else high
            raise ConfigError(
                f"candidate {who}: {name} has a score of {worst:g}, outside [0, 1]; "
                "set search.options.normaliser: min_max, or name other scores in search.options.metrics"
            )
        return column
