"""The events of a journal, looked up in its file."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from evomerge.errors import JournalError
from evomerge.run.events import Event, from_plain

_AT_ONCE = 256
"""So many lines are read with one look at the file where all are wanted."""


class JournalLog(Sequence[Event]):
    """The events of a journal in order; memory holds where each line ends, and an event is read when it is looked at.

    Args:
        path: the journal, whose lines were checked before they are added here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = array("Q", (0,))
        self.waiting: list[bytes] = []
        """The last lines, while they are not in the file yet."""

    def __len__(self) -> int:
        """How many events there are."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        """Return an event, or several.

        Raises:
            IndexError: when there is none.
            JournalError: when the file is no longer what it was.
        """
        places = range(len(self))[index]
        if isinstance(places, int):
            return next(self._events(places, places + 1))
        return [self[place] for place in places]

    def __iter__(self) -> Iterator[Event]:
        """Yield every event, those included that are added meanwhile."""
        place = 0
        while place < len(self):
            stop = min(place + _AT_ONCE, len(self))
            yield from self._events(place, stop)
            place = stop

    def add(self, end: int) -> None:
        """Take note of a line more, and of how many bytes the journal has with it."""
        self._ends.append(end)

    def cut(self, count: int) -> None:
        """Keep the first `count` lines alone."""
        del self._ends[count + 1 :]

    def _events(self, begin: int, stop: int) -> Iterator[Event]:
        written = len(self) - len(self.waiting)
        lines = self._read(begin, min(stop, written)) if begin < written else []
        lines += self.waiting[max(0, begin - written) : max(0, stop - written)]
        for place, line in enumerate(lines, start=begin):
            yield self._decoded(line, place + 1)

    def _read(self, begin: int, stop: int) -> list[bytes]:
        first, last = self._ends[begin], self._ends[stop]
        try:
            with self._path.open("rb") as file:
                file.seek(first)
                data = file.read(last - first)
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be read ({error.strerror or error})") from None
        return data.split(b"\n")[: stop - begin]

    def _decoded(self, line: bytes, seq: int) -> Event:
        try:
            data = json.loads(line)
            del data["checksum"]
            event = from_plain(data)
        except (ValueError, TypeError, KeyError):
            event = None
        if event is None or event.seq != seq:
            raise JournalError(
                f"{self._path}:{seq}: the file was changed after it was read; restore it from a copy, or open it again"
            )
        return event
