"""One place for a worker, and the actor that fills it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

from evomerge.cluster.config import ExecutorConfig

STARTS = 3
"""Failed starts in a row after which a slot no longer tries again at once."""
PROCESS_START_S = 60.0
"""How long Ray may take to bring up a process once there is room for it, on a busy machine."""
BACKOFF_S = 60.0
"""Wait after that: the machine may come back while other workers go on."""

State = Literal["empty", "pending", "starting", "ready"]


class Slot:
    """A worker by name: `pending` until its process runs, `starting` until its scorer is built, then `ready`.

    Args:
        name: stays the same for every actor that fills the slot.
        create: asks Ray for an actor and returns its handle.
    """

    def __init__(self, name: str, create: Callable[[], Any]) -> None:
        self.name = name
        self.state: State = "empty"
        self.actor: Any = None
        self.ref: Any = None
        """The one call in flight."""
        self.place = name
        """Name, host and process id, for people."""
        self.since_s = 0.0
        """When the state was entered."""
        self.failed_starts = 0
        self.not_before_s = 0.0
        self._create = create

    def spawn(self, now_s: float) -> None:
        """Ask Ray for an actor; it is `pending` as long as the cluster has no room."""
        self.actor = self._create()
        self.ref = self.actor.hello.remote()
        self.state, self.since_s, self.place = "pending", now_s, self.name

    def start(self, place: str, now_s: float) -> None:
        """Have the actor build its scorer."""
        self.ref = self.actor.start.remote()
        self.state, self.since_s, self.place = "starting", now_s, f"{self.name} ({place})"

    def ready(self) -> None:
        """Note that the scorer is built."""
        self.state, self.failed_starts = "ready", 0

    def start_failed(self, now_s: float, *, hung: bool = False) -> None:
        """Note that a start failed; from the third one on, the next is put off. A hung one is not tried again."""
        self.failed_starts = max(self.failed_starts + 1, STARTS if hung else 0)
        self.not_before_s = now_s + (BACKOFF_S if self.failed_starts >= STARTS else 0.0)

    def end(self) -> None:
        """End the actor's process, whatever it does."""
        actor, self.actor, self.ref, self.state = self.actor, None, None, "empty"
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dead already, or the cluster is gone
                import ray

                ray.kill(actor)

    def wakes_s(self, config: ExecutorConfig) -> float | None:
        """Return when somebody must look at the slot even if nothing is heard of it."""
        longest_s = config.start_timeout_s
        match self.state:
            case "ready":
                return None
            case "empty":
                return self.not_before_s
            case "pending":
                return self.since_s + longest_s + PROCESS_START_S
            case "starting":
                return self.since_s + longest_s

    def hung(self, now_s: float, config: ExecutorConfig) -> bool:
        """Tell whether the scorer is not built although a start may take no longer."""
        return self.state == "starting" and now_s - self.since_s >= config.start_timeout_s

    def starved(self, now_s: float, config: ExecutorConfig) -> bool:
        """Tell whether the actor has waited for resources for too long."""
        return self.state == "pending" and now_s - self.since_s >= config.start_timeout_s + PROCESS_START_S
