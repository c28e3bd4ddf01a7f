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
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from evomerge.errors import JournalError, StorageError
from evomerge.run.events import JOURNAL_VERSION, Event, Started, from_plain, to_plain
from evomerge.run.storage import storage_errors, sync_folder

_TWO_LINES = re.compile(rb'(?<!\\)"checksum":"[0-9a-f]{16}"\}.*\{"seq":', re.DOTALL)
_SECTOR = 512
_HOLE = re.compile(rb"\0{16,}")
_AS_IS = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
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


@dataclass(frozen=True, slots=True)
class _Tail:
    """Where a chain of lines ends."""

    seq: int = 0
    checksum: str = ""
    offset: int = 0
    """Bytes up to and with the last whole line."""


class _BrokenLineError(ValueError):
    """A line that is not what a writer wrote: torn if it is the last, else changed."""


class _ForeignLineError(ValueError):
    """A line whose checksum holds but whose content this version does not know."""


def _dump(data: dict[str, Any], *, sort: bool = False) -> str:
    return (_SORTED if sort else _AS_IS).encode(data)


def _chain(previous: str, data: dict[str, Any]) -> str:
    return hashlib.sha256((previous + _dump(data, sort=True)).encode()).hexdigest()[:16]


def _encode(event: Event, tail: _Tail) -> tuple[bytes, _Tail]:
    data = to_plain(event)
    checksum = _chain(tail.checksum, data)
    line = (_dump({**data, "checksum": checksum}) + "\n").encode()
    return line, _Tail(seq=event.seq, checksum=checksum, offset=tail.offset + len(line))


def _decode(line: bytes, tail: _Tail) -> tuple[Event, _Tail]:
    """Return the event of a line without its newline, and the tail after it.

    Raises:
        _BrokenLineError: when the bytes are not what a writer wrote after `tail`.
        _ForeignLineError: when they are, but of another version.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BrokenLineError(f"not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("checksum"), str):
        raise _BrokenLineError("not an event with a checksum")
    # The exact bytes are compared too: `1E5` for `1e5` has the same canonical form, yet nobody wrote it.
    if _dump(data).encode("utf-8", "surrogatepass") != line:
        raise _BrokenLineError("not the bytes that were written")
    checksum = data.pop("checksum")
    if checksum != _chain(tail.checksum, data):
        raise _BrokenLineError("its checksum does not match its content and the line before it")
    try:
        event = from_plain(data)
    except ValueError as error:
        raise _ForeignLineError(str(error)) from None
    if event.seq != tail.seq + 1:
        raise _ForeignLineError(f"seq is {event.seq}, expected {tail.seq + 1}")
    if isinstance(event, Started) and event.journal != JOURNAL_VERSION:
        raise _ForeignLineError(f"the journal has version {event.journal}, this evomerge reads {JOURNAL_VERSION}")
    return event, _Tail(seq=event.seq, checksum=checksum, offset=tail.offset + len(line) + 1)


class JournalReader:
    """Reads a journal that may be growing: each `poll` returns the events that came since the last.

    Example:
        reader = JournalReader(run.journal); events = reader.poll(); later = reader.poll()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tail = _Tail()
        self.torn_bytes = 0
        """Length of the torn or unfinished last line that the last poll left out."""

    @property
    def tail(self) -> _Tail:
        """Where the events that were read end; for the writer."""
        return self._tail

    def poll(self) -> list[Event]:
        """Return the new events in order; a torn last line is left for a later poll. Never writes.

        Raises:
            JournalError: for a missing file or a broken line, with its number, what is wrong and what to do.
        """
        data = self._read()
        start = self._tail.offset
        lines = data.split(b"\n")
        unfinished = lines.pop()
        events: list[Event] = []
        for index, line in enumerate(lines):
            try:
                event, self._tail = _decode(line, self._tail)
            except _ForeignLineError as error:
                raise self._error(f"{error}; read this run with the evomerge that wrote it") from None
            except _BrokenLineError as error:
                last = index == len(lines) - 1 and not unfinished
                rest = data[self._tail.offset - start :]
                torn = last or (len(rest) <= MAX_TOGETHER and _has_hole(line, self._tail.offset))
                if not torn or _is_run_together(line):
                    raise self._broken(str(error)) from None
                self.torn_bytes = len(rest)
                return events
            events.append(event)
        if _is_run_together(unfinished):
            raise self._broken("two lines run together")
        self.torn_bytes = len(unfinished)
        return events

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
        return _decode(line[:-1], _Tail())[0] if line.endswith(b"\n") else None
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return next(iter(read_journal(path)), None)  # which says what is wrong


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JournalWriter:
    """Appends events. Hold the run's lease while it is open: there may be one writer.

    Opening reads the whole journal (`events`), creates it where it is missing, and cuts off a torn last line.

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
            self.events: tuple[Event, ...] = tuple(reader.poll())
            """What stood in the journal when it was opened."""
            self.dropped_bytes = reader.torn_bytes
            """Length of the torn last line that was cut off; 0 for a journal that was closed well."""
            self._tail = self._written = reader.tail
            self._waiting: list[bytes] = []
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
    def tail(self) -> _Tail:
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
        self._waiting.append(line)
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
        lines, self._waiting = self._waiting, []
        if self._file is None or not lines:
            return
        try:
            if self._before is not None:
                self._before()
            with storage_errors(self._path, "journaling"):
                _write_all(self._file, b"".join(lines))
                os.fsync(self._file.fileno())
            self._written = self._tail
        except BaseException:  # also an interrupt: half a line must not stay
            self._tail = self._written
            self._cut_back()
            if self._before is not None:
                self.close()
            raise

    def _checked_line(self, event: Event) -> tuple[bytes, _Tail]:
        """Return an event's line: one that could not be read back would be worse than an error now."""
        try:
            line, tail = _encode(event, self._tail)
            _decode(line[:-1], self._tail)
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
