"""When a search has spent what it was given."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from evomerge.run.config import RunConfig

_UNLIMITED = 1 << 62


class Spending(Protocol):
    """What a budget looks at; `RunState` is one."""

    num_done: int
    """Candidates evaluated on the search split, whatever came out; reused scores are not counted."""


class Meter:
    """Measures a run against its budget.

    Args:
        config: the search file; its `budget` limits and its workers' GPUs.
        elapsed_s: seconds that earlier coordinators have run.
        clock: monotonic seconds.
    """

    def __init__(
        self, config: RunConfig, *, elapsed_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._budget = config.budget
        workers = 1 if config.executor.kind == "inline" else config.executor.workers
        self._gpus = workers * config.executor.gpus_per_worker
        self._before_s = elapsed_s
        self._clock = clock
        self._start_s = clock()

    def elapsed_s(self) -> float:
        """Return the seconds that coordinators have run, this one included."""
        return self._before_s + self._clock() - self._start_s

    def evaluations_left(self, spending: Spending) -> int:
        """Return how many candidates may still be scored."""
        limit = self._budget.evaluations
        return _UNLIMITED if limit is None else max(0, limit - spending.num_done)

    def spent(self, spending: Spending) -> str | None:
        """Return which limit is reached, in words, or None."""
        hours = self.elapsed_s() / 3600
        if self.evaluations_left(spending) == 0:
            return f"{self._budget.evaluations} evaluations are done"
        if self._budget.hours is not None and hours >= self._budget.hours:
            return f"{self._budget.hours:g} hours are over"
        if self._budget.gpu_hours is not None and hours * self._gpus >= self._budget.gpu_hours:
            return f"{self._budget.gpu_hours:g} GPU-hours are spent"
        return None
