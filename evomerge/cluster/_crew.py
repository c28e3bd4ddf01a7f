"""The workers of a run: how many there are to be, which start, and which may go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from evomerge.cluster._nodes import Nodes
from evomerge.cluster._placement import worker_options
from evomerge.cluster._slot import Slot, State
from evomerge.cluster._worker import Worker
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.types import ScorerFactory

CLOSE_S = 2.0
"""How long idle workers may take to free what they hold; after that they are ended."""
SPAWNS = 20
"""So many workers are asked for at most at once."""
SPAWN_EVERY_S = 1.0
NEEDLESS_S = 30.0
"""A worker that waits for room while no job waits for it is taken back after so long: it would have the autoscaler
start a machine for nothing."""


class Crew:
    """The slots of all workers, surplus ones included until they have finished.

    Args:
        config: what a worker needs, and how many there are at first.
        factory: builds the scorer inside each worker.
        own_cluster: the cluster was started for this run alone.
    """

    def __init__(self, config: ExecutorConfig, factory: ScorerFactory, *, own_cluster: bool) -> None:
        import ray

        actors = ray.remote(Worker).options(**worker_options(config, own_cluster=own_cluster))
        self._create = lambda: actors.remote(factory)
        self._config = config
        self._slots: dict[str, Slot] = {}
        self._named = 0
        self._spawn_from_s = 0.0
        self._needless_since_s: float | None = None
        self.resize(config.workers)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __getitem__(self, name: str) -> Slot:
        return self._slots[name]

    @property
    def capacity(self) -> int:
        """How many workers there are to be."""
        return sum(not slot.leaving for slot in self)

    def count(self, state: State) -> int:
        """Return how many workers are in a state."""
        return sum(slot.state == state for slot in self)

    def resize(self, workers: int) -> None:
        """Have so many workers; surplus ones are marked as leaving, those first that have done least."""
        missing = workers - self.capacity
        for slot in [slot for slot in self if slot.leaving][: max(0, missing)]:
            slot.leaving, missing = False, missing - 1
        for _ in range(missing):
            name = f"worker-{self._named}"
            self._slots[name] = Slot(name, self._create)
            self._named += 1
        staying = sorted((slot for slot in self if not slot.leaving), key=_worth)
        for slot in staying[: max(0, -missing)]:
            slot.leaving = True

    def spawn(self, now_s: float, waiting: int) -> None:
        """Start as many workers as jobs wait that no other worker will take, a few at a time.

        Args:
            now_s: on the caller's clock.
            waiting: jobs that wait for a worker.
        """
        coming = [slot for slot in self if slot.state in ("pending", "starting") or slot.idle]
        self._take_back(now_s, len(coming) - waiting)
        if now_s < self._spawn_from_s:
            return
        empty = [slot for slot in self if slot.state == "empty" and now_s >= slot.not_before_s and not slot.leaving]
        chosen = empty[: max(0, min(waiting - len(coming), SPAWNS))]
        for slot in chosen:
            slot.spawn(now_s)
        if len(chosen) == SPAWNS:
            self._spawn_from_s = now_s + SPAWN_EVERY_S

    def free(self, nodes: Nodes) -> list[Slot]:
        """Return the workers that may be given a job."""
        return [slot for slot in self if slot.idle and not slot.leaving and not nodes.draining(slot.node)]

    def let_go(self, nodes: Nodes) -> None:
        """End the workers that score nothing and are surplus, or whose node is going; these start again elsewhere."""
        for slot in list(self):
            if slot.leaving and not slot.scoring:
                slot.end()
                del self._slots[slot.name]
            elif slot.state in ("starting", "ready") and not slot.scoring and nodes.draining(slot.node):
                slot.end()

    def wakes_s(self) -> float | None:
        """Return when somebody must look at a worker even if nothing is heard of it."""
        times = [moment for slot in self if (moment := slot.wakes_s(self._config)) is not None]
        return min(times, default=None)

    def close(self) -> None:
        """End every worker; idle ones may free what they hold before."""
        import ray

        with contextlib.suppress(Exception):
            closing = [slot.actor.close.remote() for slot in self if slot.idle]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for slot in self:
            slot.end()

    def _take_back(self, now_s: float, needless: int) -> None:
        """End workers that wait for room when no job has waited for them for a while, the last ones first."""
        pending = [slot for slot in self if slot.state == "pending"]
        if needless <= 0 or not pending:
            self._needless_since_s = None
        elif self._needless_since_s is None:
            self._needless_since_s = now_s
        elif now_s - self._needless_since_s >= NEEDLESS_S:
            self._needless_since_s = None
            for slot in pending[-needless:]:
                slot.end()


def _worth(slot: Slot) -> int:
    """Order workers by what ending them costs: nothing yet, a start, an idle worker, one that scores."""
    return ("empty", "pending", "starting", "ready", "silent").index(slot.state) + slot.scoring
