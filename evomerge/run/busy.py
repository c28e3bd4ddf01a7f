"""How busy workers were, as the journal tells it."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.run.events import Evaluated


@dataclass(slots=True)
class _Worker:
    evaluations: int = 0
    seconds: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def present_s(self) -> float:
        return max(self.last_s - self.first_s, self.seconds)


class BusyWorkers:
    """Adds up, for each worker, the seconds that it scored on the search split.

    A worker's time runs from the beginning of its first evaluation to the end of its last, sessions joined end to end:
    what an engine takes to start, and what nobody asks for after the last candidate, is not its idleness. An attempt
    that was lost counts as idle, for the journal has no seconds of it.
    """

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def add(self, event: Evaluated, elapsed_s: float) -> None:
        """Take in an outcome.

        Args:
            event: a journaled outcome.
            elapsed_s: seconds that coordinators had run when it was journaled.
        """
        if event.split != "search" or event.worker is None:
            return
        seconds = sum(event.seconds.values())
        worker = self._workers.setdefault(event.worker, _Worker(first_s=max(0.0, elapsed_s - seconds)))
        worker.evaluations += 1
        worker.seconds += seconds
        worker.last_s = elapsed_s

    def table(self) -> dict[str, dict[str, float | int]]:
        """Return evaluations, seconds and busy share (0 to 1) of each worker, in the order of their first outcomes."""
        return {
            name: {
                "evaluations": worker.evaluations,
                "seconds": round(worker.seconds, 3),
                "busy_share": round(worker.seconds / worker.present_s, 4) if worker.present_s else 1.0,
            }
            for name, worker in self._workers.items()
        }

    def share(self) -> float | None:
        """Return the busy share of all workers' time, 0 to 1; None before there is any."""
        present_s = sum(worker.present_s for worker in self._workers.values())
        return sum(worker.seconds for worker in self._workers.values()) / present_s if present_s else None
