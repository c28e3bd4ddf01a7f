"""One place for a worker, and the actor that fills it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Literal

from evomerge.cluster._visible import Mark
from evomerge.cluster._worker import Place
from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.leases import Lease

STARTS = 3
"""Failed starts in a row after which a slot no longer tries again at once."""
PROCESS_START_S = 60.0
"""How long Ray may take to bring up a process once there is room for it, on a busy machine."""
BACKOFF_S = 60.0
"""Wait after that: the machine may come back while other workers go on."""
UNREACHABLE_S = 30.0
"""How long a worker may be out of reach before its job is given to another."""
LATE_S = 30.0
"""How long a late answer is waited for, after the job was given away; then the worker is replaced."""
ASK_S = 2.0
"""How often a worker that is out of reach is asked for its answer."""
KILL_S = 2.0
"""How long the order to end a worker may take: it hangs when the head is gone."""

State = Literal["empty", "pending", "starting", "ready", "silent"]


class Slot:
    """A worker by name.

    `pending` until its process runs, `starting` until its scorer is built, then `ready`; `silent` when it is out of
    reach or has not answered in time, and may yet.

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
        self.node = ""
        """Ray's id of the node."""
        self.since_s = 0.0
        """When the state was entered."""
        self.until_s = 0.0
        """When a silent worker is given up."""
        self.leaving = False
        """Whether the worker is surplus: it finishes what it scores, and then ends."""
        self.failed_starts = 0
        self.not_before_s = 0.0
        self._lease: Lease | None = None
        self._asked_s = 0.0
        self._create = create

    @property
    def idle(self) -> bool:
        """Whether the worker is ready and has nothing to do."""
        return self.state == "ready" and self.ref is None

    @property
    def scoring(self) -> bool:
        """Whether the worker is at a job, as far as anybody knows."""
        return self.state == "silent" or (self.state == "ready" and self.ref is not None)

    def spawn(self, now_s: float) -> None:
        """Ask Ray for an actor; it is `pending` as long as the cluster has no room."""
        self.actor = self._create()
        self.ref = self.actor.hello.remote()
        self.state, self.since_s, self.place, self.node = "pending", now_s, self.name, ""

    def start(self, place: Place, visible: tuple[Mark, ...], now_s: float) -> None:
        """Have the actor check what it sees, and build its scorer."""
        self.ref = self.actor.start.remote(visible)
        self.state, self.since_s = "starting", now_s
        self.place, self.node = f"{self.name} ({place.name})", place.node

    def ready(self) -> None:
        """Note that the worker waits for jobs."""
        self.state, self.failed_starts = "ready", 0

    def score(self, lease: Lease) -> None:
        """Have the worker score a job."""
        self._lease = lease
        self.ref = self.actor.score.remote(lease.job, lease.attempt)

    def fall_silent(self, now_s: float) -> None:
        """Note that the worker is out of reach, or has not answered in time."""
        self.state, self.since_s, self._asked_s = "silent", now_s, now_s
        self.until_s = now_s + UNREACHABLE_S

    def given_away(self, now_s: float) -> None:
        """Note that the worker's job was given to another; its answer is waited for a little longer."""
        if self.state != "silent":
            self.fall_silent(now_s)
        self.until_s = now_s + min(LATE_S, self._lease.limit_s if self._lease else LATE_S)

    def ask(self, now_s: float) -> None:
        """Ask a worker that is out of reach for its answer, now and then."""
        if self.ref is None and self._lease is not None and now_s - self._asked_s >= ASK_S:
            self._asked_s = now_s
            self.ref = self.actor.recall.remote(self._lease.job.key, self._lease.attempt)

    def start_failed(self, now_s: float, *, hung: bool = False) -> None:
        """Note that a start failed; from the third one on, the next is put off. A hung one is not tried again."""
        self.failed_starts = max(self.failed_starts + 1, STARTS if hung else 0)
        self.not_before_s = now_s + (BACKOFF_S if self.failed_starts >= STARTS else 0.0)

    def end(self) -> None:
        """End the actor's process, whatever it does."""
        actor, self.actor, self.ref, self.state, self._lease = self.actor, None, None, "empty", None
        if actor is not None:
            thread = threading.Thread(target=_kill, args=(actor,), daemon=True)
            thread.start()
            thread.join(KILL_S)

    def wakes_s(self, config: ExecutorConfig) -> float | None:
        """Return when somebody must look at the slot even if nothing is heard of it."""
        longest_s = config.start_timeout_s
        match self.state:
            case "ready" | "empty":
                return None
            case "pending":
                return self.since_s + longest_s + PROCESS_START_S
            case "starting":
                return self.since_s + longest_s
            case "silent":
                return min(self.until_s, self._asked_s + ASK_S) if self.ref is None else self.until_s

    def hung(self, now_s: float, config: ExecutorConfig) -> bool:
        """Tell whether the scorer is not built although a start may take no longer."""
        return self.state == "starting" and now_s - self.since_s >= config.start_timeout_s

    def starved(self, now_s: float, config: ExecutorConfig) -> bool:
        """Tell whether the actor has waited for resources for too long."""
        return self.state == "pending" and now_s - self.since_s >= config.start_timeout_s + PROCESS_START_S


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it is dead already, or the cluster is gone
        import ray

        ray.kill(actor)
