"""Ctrl-C and SIGTERM drain a coordinator."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evomerge.run.coordinator import Coordinator


@contextmanager
def draining_on_signals(coordinator: Coordinator) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM drain the coordinator; a second one interrupts at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if coordinator.is_draining:
            raise KeyboardInterrupt
        coordinator.drain("interrupted" if number == signal.SIGINT else "terminated")

    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone: whoever runs a search beside it drains it itself
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
