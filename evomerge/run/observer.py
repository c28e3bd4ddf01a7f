"""Who hears how a coordinator is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from evomerge.run.view import Run

Ending = Literal["finished", "paused", "stopped"]
"""How a session ends."""
DRAINING = "draining"
"""The figure that tells observers why the coordinator drains, while it does."""


class Observer(Protocol):
    """Hears, about twice a second, how the coordinator is doing; what is journaled it reads in the journal."""

    def __call__(self, figures: Mapping[str, float | int | str]) -> None:
        """Show the figures of searcher and executor; `draining` among them says why no more is begun.

        When a drain begins it is called at once with that figure alone, in the midst of whatever a signal
        interrupted: it may then write to a descriptor, and should do nothing else.
        """
        ...


@runtime_checkable
class Watcher(Observer, Protocol):
    """An observer that also looks at the run itself."""

    def watch(self, run: Run) -> None:
        """Look at this run from now on: it shares the coordinator's state, so it is read on its thread alone."""
        ...


def unobserved(figures: Mapping[str, float | int | str]) -> None:
    """Show nothing."""
    del figures
