"""Ctrl-C, SIGTERM and SIGUSR1 drain a coordinator."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.run.coordinator import Coordinator

_REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGUSR1: "asked to leave by SIGUSR1",
}


@contextmanager
def draining_on_signals(coordinator: Coordinator) -> Iterator[None]:
    """Let signals drain the coordinator; a second Ctrl-C or SIGTERM interrupts at once.

    SIGUSR1 is what batch systems send ahead of a time limit; however often it comes, it only drains.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if coordinator.is_draining and number != signal.SIGUSR1:
            raise KeyboardInterrupt
        coordinator.drain(_REASONS[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone: whoever runs a search beside it drains it itself
        return
    before = {number: signal.signal(number, on_signal) for number in _REASONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
