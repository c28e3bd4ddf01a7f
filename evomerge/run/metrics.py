"""Figures of a run for monitoring: what Prometheus scrapes, and what goes to Ray's own metrics.

Everything that the journal knows comes from its state, and so is right after a resume; what the workers do now
comes from the executor's figures. docs/metrics.md lists the names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge.run.events import Evaluated
from evomerge.run.state import RunState

PREFIX = "evomerge_"
Figures = Mapping[str, float | int | str]
BUCKETS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds of the histogram of seconds."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations, counted by bucket."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    """Observations above the bound before and up to the own, those above all bounds last."""
    total: float = 0.0
    """Sum of the observations."""

    def observed(self, value: float) -> Histogram:
        """Return the same with one observation more."""
        place = bisect_left(BUCKETS_S, value)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return Histogram(counts, self.total + value)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with its values; a counter's name ends in `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None
    """Name of its label."""
    values: Mapping[str, float] | Mapping[str, Histogram]
    """By the label's value; under "" where it has no label."""


class Tally:
    """Sums over every evaluation, kept up to date from one look at a state to the next."""

    def __init__(self) -> None:
        self.evaluations = dict.fromkeys(("feasible", "infeasible", "failed", "reused"), 0)
        self.stages: dict[str, Histogram] = {}
        self.quarantined = 0
        self._place = 0

    def update(self, state: RunState) -> list[Evaluated]:
        """Take in what a state has evaluated since the last look, and return it in order."""
        new: list[Evaluated] = []
        for event in state.since(self._place):
            self._place += 1
            if isinstance(event, Evaluated):
                self._add(event)
                new.append(event)
        return new

    def _add(self, event: Evaluated) -> None:
        if event.split == "search" and isinstance(event.candidate, int):
            self.evaluations["reused" if event.reused_from is not None else event.state] += 1
        if event.reused_from is None:
            self.quarantined += event.state == "failed" and (event.reason or "").startswith("quarantined")
            for stage, seconds in event.seconds.items():
                self.stages[stage] = self.stages.get(stage, Histogram()).observed(seconds)


def measure(state: RunState, figures: Figures, tally: Tally | None = None) -> tuple[Metric, ...]:
    """Return every metric of a run.

    Args:
        state: what its journal comes to.
        figures: what an observer of the coordinator hears.
        tally: of the same state; left out: it is counted anew.
    """
    if tally is None:
        tally = Tally()
        tally.update(state)
    archive = state.archives.get("search")
    last = archive.latest if archive else None
    best = dict(zip(state.objectives, last.best_per_objective or (), strict=False)) if last else {}
    counted = {word: _number(figures, f"workers_{word}") for word in ("ready", "starting")}
    workers = {word: value for word, value in counted.items() if value is not None}
    return (
        _counter("evaluations", "Candidates with an outcome on the search split", dict(tally.evaluations), "state"),
        Metric(f"{PREFIX}stage_seconds", "histogram", "Seconds of a stage of scoring", "stage", dict(tally.stages)),
        _gauge("busy_share", "Share of the ready workers' time spent scoring", _alone(_number(figures, "busy_share"))),
        _gauge("workers", "Workers", workers, "state"),
        _gauge("hypervolume", "Hypervolume of the front", _alone(last.hypervolume if last else 0.0)),
        _gauge("best", "Highest value of an objective", best, "objective"),
        _counter("gpu_seconds", "Seconds times GPUs that workers held", _alone(state.gpu_s)),
        _gauge("queue_depth", "Jobs that wait for a worker", _alone(_number(figures, "waiting"))),
        _counter("retries", "Attempts that were lost", _alone(sum(state.lost_attempts.values()))),
        _counter("quarantined", "Jobs set aside because they cost workers", _alone(tally.quarantined)),
        _gauge("mirror_behind", "Journal lines that are not mirrored", _alone(_number(figures, "mirror_behind"))),
    )


def _counter(name: str, text: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    return Metric(f"{PREFIX}{name}_total", "counter", text, label, values)


def _gauge(name: str, text: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    return Metric(f"{PREFIX}{name}", "gauge", text, label, values)


def _alone(value: float | None) -> dict[str, float]:
    """Return the values of a metric without a label: one, or none where it is not known."""
    return {} if value is None else {"": float(value)}


def _number(figures: Figures, key: str) -> float | None:
    value = figures.get(key)
    return None if isinstance(value, str) else value
