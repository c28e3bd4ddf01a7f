"""When a search has spent what it was given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from evomerge.run.config import BudgetConfig, RunConfig

_UNLIMITED = 1 << 62
_HOUR_S = 3600.0


class Spending(Protocol):
    """What a budget looks at; `RunState` is one."""

    num_done: int
    """Candidates evaluated on the search split, whatever came out; reused scores are not counted."""
    num_stagnant: int
    """Of these, those since the best scalarised objective or the hypervolume last grew."""

    @property
    def best(self) -> float | None:
        """Highest scalarised objective of a feasible candidate; None before the first."""
        ...


class Meter:
    """Measures a run against its budget.

    Args:
        config: the search file; its `budget` limits and its workers' GPUs.
        elapsed_s: seconds that earlier coordinators have run.
        gpu_s: GPU-seconds that their workers held.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        elapsed_s: float = 0.0,
        gpu_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget: BudgetConfig = config.budget
        """The limits; they may be replaced at any time."""
        self.gpus_per_worker = config.executor.gpus_per_worker
        """GPUs that each worker holds."""
        self._is_inline = config.executor.kind == "inline"
        self._workers = 1 if self._is_inline else config.executor.workers
        self._before_s, self._gpus_before_s = elapsed_s, gpu_s
        self._held_s: float | None = None
        self._clock = clock
        self._start_s = clock()

    def elapsed_s(self) -> float:
        """Return the seconds that coordinators have run, this one included."""
        return self._before_s + self._clock() - self._start_s

    def hear(self, figures: Mapping[str, float | int | str]) -> None:
        """Take note of what an executor's `status` says of GPUs; scoring in this process, it knows of none."""
        held = figures.get("gpu_seconds")
        if not self._is_inline and isinstance(held, int | float):
            self._held_s = float(held)

    def gpu_s(self) -> float:
        """Return the GPU-seconds that workers have held; of an executor that does not say, all of its workers' time."""
        held = self._held_s
        if held is None:
            held = (self.elapsed_s() - self._before_s) * self._workers * self.gpus_per_worker
        return self._gpus_before_s + held

    def evaluations_left(self, spending: Spending) -> int:
        """Return how many candidates may still be scored."""
        limit = self.budget.evaluations
        return _UNLIMITED if limit is None else max(0, limit - spending.num_done)

    def spent(self, spending: Spending) -> str | None:
        """Return which limit is reached, in words, or None."""
        budget = self.budget
        gpu_hours = self.gpu_s() / _HOUR_S
        limits: tuple[tuple[float | None, float | None, str], ...] = (
            (budget.evaluations, spending.num_done, "{} evaluations are done"),
            (budget.hours, self.elapsed_s() / _HOUR_S, "{} hours are over"),
            (budget.gpu_hours, gpu_hours, "{} GPU-hours are spent"),
            (budget.cost, gpu_hours * (budget.cost_per_gpu_hour or 0.0), "the cost of {} is reached"),
            (budget.target, spending.best, "the target {} was reached"),
            (budget.plateau, spending.num_stagnant, "a plateau: {} evaluations brought nothing better"),
        )
        for limit, value, words in limits:
            if limit is not None and value is not None and value >= limit:
                return words.format(limit if isinstance(limit, int) else f"{limit:g}")
        return None


def spending(
    budget: BudgetConfig, *, evaluations: int, elapsed_s: float, gpu_s: float
) -> dict[str, float | int | None]:
    """Return what a run has spent in the units of its budget; the cost is None where GPUs have no price.

    Args:
        budget: the limits that hold now.
        evaluations: candidates evaluated.
        elapsed_s: seconds that coordinators have run.
        gpu_s: GPU-seconds that workers have held.
    """
    gpu_hours = gpu_s / _HOUR_S
    price = budget.cost_per_gpu_hour
    return {
        "evaluations": evaluations,
        "hours": round(elapsed_s / _HOUR_S, 6),
        "gpu_hours": round(gpu_hours, 6),
        "cost": None if price is None else round(gpu_hours * price, 6),
    }
