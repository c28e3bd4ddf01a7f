"""Telling a person how far a merge is."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_PLAIN_EVERY_S = 5.0


class MergeProgress(Protocol):
    """Hears how a merge goes on."""

    def start(self, title: str, total_bytes: int) -> None:
        """Hear what will be written."""
        ...

    def advance(self, num_bytes: int) -> None:
        """Hear that so many more bytes are written."""
        ...

    def finish(self) -> None:
        """Hear that it is over, well or not."""
        ...


class _Bar:
    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def start(self, title: str, total_bytes: int) -> None:
        self._progress.update(self._task, description=title, total=total_bytes, visible=True)
        self._progress.start()

    def advance(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def finish(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._title = ""
        self._total = self._done = 0
        self._last = time.monotonic()

    def start(self, title: str, total_bytes: int) -> None:
        self._title, self._total = title, total_bytes

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= _PLAIN_EVERY_S:
            self._last = now
            share = self._done / self._total if self._total else 1.0
            self._stream.write(f"{self._title}: {share:.0%} of {self._total / 1e6:.1f} MB\n")
            self._stream.flush()

    def finish(self) -> None:
        self._stream.flush()


def terminal_progress(stream: TextIO | None = None) -> MergeProgress:
    """Return a progress bar for a terminal, or plain lines (at most one in five seconds) for anything else.

    Args:
        stream: where it goes; None: standard error.
    """
    stream = stream if stream is not None else sys.stderr
    return _Bar(stream) if stream.isatty() else _Lines(stream)
