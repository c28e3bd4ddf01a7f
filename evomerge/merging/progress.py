"""Telling a person how far a merge is."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_PLAIN_EVERY_S = 5.0
_BYTES = "bytes"


class MergeProgress(Protocol):
    """Hears how a merge goes on; work that is not counted in bytes is told in its own unit."""

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
    def __init__(self, stream: TextIO, unit: str) -> None:
        counts = (
            (DownloadColumn(), TransferSpeedColumn()) if unit == _BYTES else (MofNCompleteColumn(), TextColumn(unit))
        )
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *counts,
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def start(self, title: str, total_bytes: int) -> None:
        self._progress.update(self._task, description=title, total=total_bytes, completed=0, visible=True)
        self._progress.start()

    def advance(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def finish(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, stream: TextIO, unit: str) -> None:
        self._stream, self._unit = stream, unit
        self._title = ""
        self._total = self._done = 0
        self._last = time.monotonic()

    def start(self, title: str, total_bytes: int) -> None:
        self._title, self._total, self._done = title, total_bytes, 0

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= _PLAIN_EVERY_S:
            self._last = now
            share = self._done / self._total if self._total else 1.0
            of = f"{self._total / 1e6:.1f} MB" if self._unit == _BYTES else f"{self._total:,} {self._unit}"
            self._stream.write(f"{self._title}: {share:.0%} of {of}\n")
            self._stream.flush()

    def finish(self) -> None:
        self._stream.flush()


def terminal_progress(stream: TextIO | None = None, *, unit: str = _BYTES) -> MergeProgress:
    """Return a progress bar for a terminal, or plain lines (at most one in five seconds) for anything else.

    Args:
        stream: where it goes; None: standard error.
        unit: what is counted.
    """
    stream = stream if stream is not None else sys.stderr
    return _Bar(stream, unit) if stream.isatty() else _Lines(stream, unit)
