"""Who hears how a coordinator is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

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


def unobserved(figures: Mapping[str, float | int | str]) -> None:
    """Show nothing."""
    del figures
