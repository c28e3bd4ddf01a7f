"""The lines of a journal: how an event becomes one, and how a line is checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from evomerge.run.events import JOURNAL_VERSION, Event, Started, from_plain, to_plain

_AS_IS = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a chain of lines ends."""

    seq: int = 0
    checksum: str = ""
    offset: int = 0
    """Bytes up to and with the last whole line."""


class BrokenLineError(ValueError):
    """A line that is not what a writer wrote: torn if it is the last, else changed."""


class ForeignLineError(ValueError):
    """A line whose checksum holds but whose content this version does not know."""


def dump(data: dict[str, Any], *, sort: bool = False) -> str:
    """Return data as the JSON of a line, with its keys in their order or sorted."""
    return (_SORTED if sort else _AS_IS).encode(data)


def chain(previous: str, data: dict[str, Any]) -> str:
    """Return the checksum of a line's data that follows a line with the checksum `previous`."""
    return hashlib.sha256((previous + dump(data, sort=True)).encode()).hexdigest()[:16]


def encode(event: Event, tail: Tail) -> tuple[bytes, Tail]:
    """Return the line of an event after `tail`, with its newline, and the tail after it."""
    data = to_plain(event)
    checksum = chain(tail.checksum, data)
    line = (dump({**data, "checksum": checksum}) + "\n").encode()
    return line, Tail(seq=event.seq, checksum=checksum, offset=tail.offset + len(line))


def decode(line: bytes, tail: Tail) -> tuple[Event, Tail]:
    """Return the event of a line without its newline, and the tail after it.

    Raises:
        BrokenLineError: when the bytes are not what a writer wrote after `tail`.
        ForeignLineError: when they are, but of another version.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenLineError(f"not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("checksum"), str):
        raise BrokenLineError("not an event with a checksum")
    # The exact bytes are compared too: `1E5` for `1e5` has the same canonical form, yet nobody wrote it.
    if dump(data).encode("utf-8", "surrogatepass") != line:
        raise BrokenLineError("not the bytes that were written")
    checksum = data.pop("checksum")
    if checksum != chain(tail.checksum, data):
        raise BrokenLineError("its checksum does not match its content and the line before it")
    try:
        event = from_plain(data)
    except ValueError as error:
        raise ForeignLineError(str(error)) from None
    if event.seq != tail.seq + 1:
        raise ForeignLineError(f"seq is {event.seq}, expected {tail.seq + 1}")
    if isinstance(event, Started) and event.journal != JOURNAL_VERSION:
        raise ForeignLineError(f"the journal has version {event.journal}, this evomerge reads {JOURNAL_VERSION}")
    return event, Tail(seq=event.seq, checksum=checksum, offset=tail.offset + len(line) + 1)
