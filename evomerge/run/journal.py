"""The journal: an append-only file of events, the one truth about a run.

One JSON object a line. `checksum` is the first 16 hex digits of SHA-256 over the previous line's checksum
(nothing for the first line) followed by the line's canonical JSON (keys sorted, no spaces) without its
checksum: a changed, removed, repeated or swapped line breaks the chain. An event counts once `append` has
returned: the line was written and fsynced. Hence only the last line can be torn by a crash; readers leave
it out and the next writer cuts it off. A line that is broken anywhere else was changed afterwards, and is
an error.

Events of one `together` block reach the disk with one write and one fsync at its end; only then do they count.
A power cut may leave pages of such a write as zeros with later ones in place, so a line with whole sectors of
zeros, from its start or a sector's on, is the beginning of a torn end too, if no more than `MAX_TOGETHER` bytes follow.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self, TypeVar

from evomerge.errors import JournalError, StorageError
from evomerge.run.events import Event
from evomerge.run.lines import BrokenLineError, ForeignLineError, Tail, decode, encode
from evomerge.run.log import JournalLog
from evomerge.run.storage import storage_errors, sync_folder

_TWO_LINES = re.compile(rb'(?<!\\)"checksum":"[0-9a-f]{16}"\}.*\{"seq":', re.DOTALL)
_SECTOR = 512
_HOLE = re.compile(rb"\0{16,}")
EventT = TypeVar("EventT", bound=Event)
MAX_TOGETHER = 1 << 18
"""Bytes that are written with one fsync at most, but for a longer single line."""


class AppendFile(Protocol):
    """What the writer needs of an unbuffered file opened for appending; a seam for tests of full disks."""

    def write(self, data: bytes, /) -> int | None:
        """Append; returns how many bytes were taken."""
        ...

    def truncate(self, size: int, /) -> int:
        """Cut the file."""
        ...

    def fileno(self) -> int:
        """Return the descriptor, for fsync."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_append(path: Path) -> AppendFile:
    """Open a file for unbuffered appending, creating it."""
    return path.open("ab", buffering=0)


class JournalReader:
    """Reads a journal that may be growing: each `poll` returns the events that came since the last.

    Example:
        reader = JournalReader(run.journal); events = reader.poll(); later = reader.poll()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = Tail()
        self.events = JournalLog(path)
        """What was read so far; looked up in the file."""
        self.torn_bytes = 0
        """Length of the torn or unfinished last line that the last poll left out."""

    @property
    def tail(self) -> Tail:
        """Where the events that were read end; for the writer."""
        return self._tail

    def poll(self) -> list[Event]:
        """Return the new events in order; a torn last line is left for a later poll. Never writes.

        Raises:
            JournalError: for a missing file or a broken line, with its number, what is wrong and what to do.
        """
        return list(self.read())

    def read(self) -> Iterator[Event]:
        """Yield what `poll` returns, one by one: they need not all be in memory."""
        data = self._read()
        start = self._tail.offset
        lines = data.split(b"\n")
        unfinished = lines.pop()
        for index, line in enumerate(lines):
            try:
                event, self._tail = decode(line, self._tail)
            except ForeignLineError as error:
                raise self._error(f"{error}; read this run with the evomerge that wrote it") from None
            except BrokenLineError as error:
                last = index == len(lines) - 1 and not unfinished
                rest = data[self._tail.offset - start :]
                torn = last or (len(rest) <= MAX_TOGETHER and _has_hole(line, self._tail.offset))
                if not torn or _is_run_together(line):
                    raise self._broken(str(error)) from None
                self.torn_bytes = len(rest)
                return
            self.events.add(self._tail.offset)
            yield event
        if _is_run_together(unfinished):
            raise self._broken("two lines run together")
        self.torn_bytes = len(unfinished)

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._tail.offset:
                    raise self._error("the file became shorter while it was followed; open the run again")
                file.seek(self._tail.offset)
                return file.read()
        except FileNotFoundError:
            raise JournalError(f"{self._path}: no such file; a run's journal was expected") from None
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be read ({error.strerror or error})") from None

    def _error(self, text: str) -> JournalError:
        return JournalError(f"{self._path}:{self._tail.seq + 1}: {text}")

    def _broken(self, what: str) -> JournalError:
        return self._error(
            f"broken line: {what}; the file was changed after it was written: restore it from a copy, or "
            f"keep its first {self._tail.seq} lines and resume, which searches again what came later"
        )


def _is_run_together(line: bytes) -> bool:
    """Tell whether one line holds a whole event and the start of another: a lost newline, no torn write."""
    return _TWO_LINES.search(line) is not None


def _has_hole(line: bytes, offset: int) -> bool:
    """Tell whether a line that stands at an offset has zeros where sectors of a disk were not written."""
    hole = _HOLE.search(line)
    if hole is None:
        return False
    begin, end = hole.span()
    return (begin == 0 or (offset + begin) % _SECTOR == 0) and (end == len(line) or (offset + end) % _SECTOR == 0)


def read_journal(path: Path) -> list[Event]:
    """Return a journal's events; a torn last line is left out. Never writes.

    Raises:
        JournalError: for a missing file or a broken line, with its number, what is wrong and what to do.
    """
    return JournalReader(path).poll()


def _nothing() -> None:
    """There is nothing to do."""


def first_event(path: Path) -> Event | None:
    """Return a journal's first event, whatever its length; None where there is none yet. Never writes.

    Raises:
        JournalError: for a broken line.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
        return decode(line[:-1], Tail())[0] if line.endswith(b"\n") else None
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return next(iter(read_journal(path)), None)  # which says what is wrong


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JournalWriter:
    """Appends events. Hold the run's lease while it is open: there may be one writer.

    Opening checks the whole journal, creates it where it is missing, and cuts off a torn last line.

    Args:
        path: the journal; its folder exists.
        opener: opens the file for appending.
        clock: returns the time of an event, ISO 8601, UTC.

    Raises:
        JournalError: when a line other than the last is broken.
        StorageError: when the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        *,
        opener: Callable[[Path], AppendFile] = open_append,
        clock: Callable[[], str] = _utc_now,
    ) -> None:
        self._path = path
        self._clock = clock
        with storage_errors(path, "opening"):
            is_new = not path.exists()
            self._file: AppendFile | None = opener(path)
        try:
            reader = JournalReader(path)
            self.num_found = sum(1 for _ in reader.read())
            """How many events stood in the journal when it was opened."""
            self.events = reader.events
            """Every event, those included that are appended; looked up in the file."""
            self.dropped_bytes = reader.torn_bytes
            """Length of the torn last line that was cut off; 0 for a journal that was closed well."""
            self._tail = self._written = reader.tail
            self._before: Callable[[], None] | None = None
            with storage_errors(path, "opening"):
                if self.dropped_bytes:
                    self._file.truncate(self._tail.offset)
                # What a killed writer wrote may be read back before it is on disk: from here on it counts.
                os.fsync(self._file.fileno())
                if is_new:
                    sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def tail(self) -> Tail:
        """Where the events end that are certain to be on disk; may be read by another thread."""
        return self._written

    def append(self, event: EventT) -> EventT:
        """Write an event and return it with its `seq` and `time`, once it is on disk (or within `together`: noted).

        Raises:
            StorageError: when the disk refuses; the journal then ends with the event before.
            JournalError: when the writer is closed, or the event holds what could not be read back (NaN).
        """
        if self._file is None:
            raise JournalError(f"{self._path}: the journal is closed; resume the run to write to it")
        stamped = event.model_copy(update={"seq": self._tail.seq + 1, "time": self._clock()})
        line, self._tail = self._checked_line(stamped)
        self.events.waiting.append(line)
        self.events.add(self._tail.offset)
        if self._before is None or self._tail.offset - self._written.offset > MAX_TOGETHER:
            self._flush()
        return stamped

    @contextlib.contextmanager
    def together(self, before: Callable[[], None] = _nothing) -> Iterator[None]:
        """Let what is appended within reach the disk at the end, whatever ends it, with one write and one fsync.

        Until then nobody outside of this process may learn of the events. Where the disk refuses, none of them
        stands in the journal and it is closed, for who appended them has gone on as if they did.

        Args:
            before: makes last what the events refer to; called before each write.

        Raises:
            StorageError: when the disk refuses.
        """
        if self._before is not None:  # the outer one sees to it
            yield
            return
        self._before = before
        try:
            yield
        finally:
            try:
                self._flush()
            finally:
                self._before = None

    def _flush(self) -> None:
        """Write the lines that wait, and make them last."""
        lines = self.events.waiting
        try:
            if self._file is None or not lines:
                return
            if self._before is not None:
                self._before()
            with storage_errors(self._path, "journaling"):
                _write_all(self._file, b"".join(lines))
                os.fsync(self._file.fileno())
            self._written = self._tail
        except BaseException:  # also an interrupt: half a line must not stay
            self._tail = self._written
            self.events.cut(self._tail.seq)
            self._cut_back()
            if self._before is not None:
                self.close()
            raise
        finally:
            lines.clear()

    def _checked_line(self, event: Event) -> tuple[bytes, Tail]:
        """Return an event's line: one that could not be read back would be worse than an error now."""
        try:
            line, tail = encode(event, self._tail)
            decode(line[:-1], self._tail)
        except ValueError as error:
            raise JournalError(
                f"{self._path}: an event {event.kind!r} cannot be journaled ({error}); give finite numbers and text"
            ) from None
        return line, tail

    def _cut_back(self) -> None:
        """Cut off what a failed write left; if that fails too, close: the next writer cuts it off."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._written.offset)
            os.fsync(self._file.fileno())
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; every appended event is on disk already."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_all(file: AppendFile, data: bytes) -> None:
    """Write everything: a nearly full disk may take a part first and refuse the rest at the next call."""
    rest = memoryview(data)
    while rest:
        taken = file.write(bytes(rest))
        if not taken:
            raise StorageError("the file takes no further bytes")
        rest = rest[taken:]


def follow(path: Path, wait: Callable[[], bool]) -> Iterator[list[Event]]:
    """Yield new events as they come, an empty list where none came, until `wait` returns false.

    Args:
        path: the journal.
        wait: called between polls; sleeps, and says whether to go on.

    Raises:
        JournalError: for a broken line.
    """
    reader = JournalReader(path)
    yield reader.poll()
    while wait():
        yield reader.poll()
