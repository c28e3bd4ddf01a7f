"""How much of the workers' time went into scoring, and how many GPU-seconds they held."""

from __future__ import annotations


class Usage:
    """Seconds of workers, on the caller's clock.

    Args:
        gpus_per_worker: GPUs that a worker holds from the moment its process runs.
        now_s: when the session begins.
    """

    def __init__(self, gpus_per_worker: float, now_s: float) -> None:
        self._gpus = gpus_per_worker
        self._at_s = now_s
        self._ready = 0
        self._held = 0
        self._ready_s = 0.0
        self._held_s = 0.0
        self._scored_s = 0.0
        self._since_s: dict[str, float] = {}

    def workers(self, now_s: float, *, ready: int, held: int) -> None:
        """Note how many workers there are from now on: `ready` to score, and `held` with those that start."""
        elapsed_s, self._at_s = max(0.0, now_s - self._at_s), now_s
        self._ready_s += self._ready * elapsed_s
        self._held_s += self._held * elapsed_s
        self._ready, self._held = ready, held

    def began(self, worker: str, now_s: float) -> None:
        """Note that a worker scores from now on."""
        self._since_s[worker] = now_s

    def ended(self, worker: str, now_s: float, seconds: float | None = None) -> None:
        """Note that a worker has ended an attempt, which took `seconds` by its own clock, or until now."""
        begun_s = self._since_s.pop(worker, None)
        if begun_s is not None:
            self._scored_s += now_s - begun_s if seconds is None else seconds

    def figures(self, now_s: float) -> dict[str, float]:
        """Return `busy_share`, 0 to 1, and `gpu_seconds` since the session began."""
        elapsed_s = max(0.0, now_s - self._at_s)
        ready_s = self._ready_s + self._ready * elapsed_s
        scored_s = self._scored_s + sum(now_s - begun_s for begun_s in self._since_s.values())
        return {
            "busy_share": min(1.0, scored_s / ready_s) if ready_s > 0 else 0.0,
            "gpu_seconds": self._gpus * (self._held_s + self._held * elapsed_s),
        }
