"""Continuous copy of a run to an fsspec address, beside the run and never in its way.

A thread reads the journal as the disk has it and copies what came: first the score files that new lines name, then
the lines themselves. So whatever instant the copy ends at, the mirror is a run that can be continued, some lines
behind. A mirror that fails is tried again, ever less often; the run does not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evomerge.errors import StateError
from evomerge.run.folder import CONFIG, ENVIRONMENT, RunFolder
from evomerge.run.lease import Lease
from evomerge.run.mirror_lease import MirrorLease, Pace, TakenOverError
from evomerge.run.mirror_restore import restore
from evomerge.run.mirror_store import BATCH, FILE_KEYS, MirrorStore, Segment
from evomerge.run.scores import FOLDER as SCORES
from evomerge.run.storage import storage_errors

SEGMENT_BYTES = 4 << 20
"""A part of the journal is no larger, but for a single longer line."""
HURRY_S = 5.0
"""How long the end of a session that failed or was interrupted may take to copy the rest."""
PACE = Pace()
_log = logging.getLogger(__name__)


class Position(Protocol):
    """Where a journal ends."""

    @property
    def seq(self) -> int:
        """Number of the last line."""
        ...

    @property
    def offset(self) -> int:
        """Bytes up to and with it."""
        ...


class Journal(Protocol):
    """What the copy looks at of a `JournalWriter`."""

    @property
    def tail(self) -> Position:
        """Where the lines end that are certain to be on disk."""
        ...


class _EndedError(Exception):
    """The session's end left no more time."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Lines that are being copied; the same ones until they are, so that no line can be copied in two parts."""

    segment: Segment
    data: bytes


class Mirror:
    """Copies one run to a mirror whose lease is held, from `follow` to `close`.

    Args:
        store: the mirror.
        lease: held; kept from now on, and given back by `close`.
        pace: how often it looks, and how long it tries.
    """

    def __init__(self, store: MirrorStore, lease: MirrorLease, pace: Pace) -> None:
        self._store = store
        self._lease = lease
        self._pace = pace
        self._folder: RunFolder | None = None
        self._journal: Journal | None = None
        self._known: set[str] | None = None
        self._copied = 0
        self._offset = 0
        self._part: _Part | None = None
        self._failing = ""
        self._taken = False
        self._wake = threading.Event()
        self._ends_s: float | None = None
        self._thread = threading.Thread(target=self._live, name="evomerge-mirror", daemon=True)
        self._thread.start()

    def check_free(self) -> None:
        """Refuse a mirror that holds a run, before another is started.

        Raises:
            StateError: when it does.
        """
        if self._store.has_run():
            raise StateError(
                f"--mirror {self._store.shown}: a run is mirrored there already; continue it with `evomerge resume RUN "
                f"--mirror {self._store.shown}`, or give another address"
            )

    @contextlib.contextmanager
    def following(self, folder: RunFolder, journal: Journal) -> Iterator[None]:
        """Copy a run whose lease is held; at the end copy the rest, for a bounded time."""
        self._lease.name(folder.path)
        self._folder, self._journal = folder, journal
        self._wake.set()
        try:
            yield
        except BaseException:
            self.close(HURRY_S)
            raise
        self.close(self._pace.flush_s)

    @property
    def behind(self) -> int:
        """How many lines of the journal are not in the mirror yet."""
        return 0 if self._journal is None else self._journal.tail.seq - self._copied

    def close(self, patience_s: float) -> None:
        """Copy the rest within so many seconds, and give the lease back; says so where that was not enough."""
        if self._ends_s is not None:
            return
        self._ends_s = time.monotonic() + patience_s
        self._wake.set()
        self._thread.join(patience_s + 1.0)
        if self.behind and not self._taken:
            why = f" ({self._failing})" if self._failing else ""
            _log.warning(
                "--mirror %s: the last %d lines of the journal are not there%s; the run folder has them, and a resume "
                "with the same --mirror copies them",
                self._store.shown,
                self.behind,
                why,
            )

    def _live(self) -> None:
        """Look after the mirror until it is closed, or another coordinator has taken it."""
        attempts = 0
        while True:
            last = self._ends_s is not None
            try:
                self._round()
            except TakenOverError as error:
                self._taken = True
                self._fails(f"{error}; this run goes on in its own folder, without a mirror")
                return
            except _EndedError:
                break
            except Exception as error:  # noqa: BLE001  whatever a file system raises must not reach the run
                attempts += 1
                self._fails(f"{error}; the run goes on, and what came meanwhile is copied then")
            else:
                attempts, self._failing = 0, ""
                if last:
                    break
            self._pause(attempts)
        self._lease.release()

    def _fails(self, text: str) -> None:
        """Say so, once until it works again."""
        if not self._failing:
            _log.warning("%s", text)
        self._failing = text

    def _pause(self, attempts: int) -> None:
        wait_s = min(2.0 ** (attempts - 1), self._pace.longest_wait_s) if attempts else self._pace.every_s
        if self._ends_s is None:
            self._wake.wait(wait_s)
            self._wake.clear()
        else:
            time.sleep(min(wait_s, 0.5))

    def _round(self) -> None:
        """Give a sign of life, and copy what came since the last round.

        Raises:
            EvomergeError: when the mirror cannot be read or written.
        """
        self._go_on()
        if self._folder is None or self._journal is None:
            return
        if self._known is None:
            self._known = self._begin(self._folder, self._journal)
        while self._part is not None or self._journal.tail.offset > self._offset:
            if self._part is None:
                self._part = self._next_part(self._folder, self._journal)
            self._copy_files(self._part, self._folder, self._known)
            self._go_on()
            self._store.put({self._part.segment.name: self._part.data})
            self._copied = self._part.segment.last
            self._offset += len(self._part.data)
            self._part = None

    def _go_on(self) -> None:
        """Give a sign of life where it is time.

        Raises:
            _EndedError: when the session's end leaves no more time.
            TakenOverError: when another coordinator has taken the mirror.
        """
        if self._ends_s is not None and time.monotonic() > self._ends_s:
            raise _EndedError
        self._lease.beat()

    def _begin(self, folder: RunFolder, journal: Journal) -> set[str]:
        """Find where the copy stands, and return the names of the score files that it has."""
        segments = self._store.segments()
        copied = segments[-1].last if segments else 0
        tail = journal.tail
        if copied > tail.seq:
            raise StateError(f"--mirror {self._store.shown}: it has lines that {folder.path} has not; resume the run")
        with folder.journal.open("rb") as file:
            self._offset = sum(len(file.readline()) for _ in range(copied))
        self._copied = copied
        self._store.put({CONFIG: folder.config_path.read_bytes(), ENVIRONMENT: folder.environment_path.read_bytes()})
        return set(self._store.names(SCORES))

    def _next_part(self, folder: RunFolder, journal: Journal) -> _Part:
        end = journal.tail.offset
        with folder.journal.open("rb") as file:
            file.seek(self._offset)
            data = file.read(min(end - self._offset, SEGMENT_BYTES))
            # A whole number of lines; one that is longer than a part is read to its end.
            data = data[: data.rfind(b"\n") + 1] or data + file.readline()
        first = self._copied + 1
        return _Part(Segment(first, first + data.count(b"\n") - 1), data)

    def _copy_files(self, part: _Part, folder: RunFolder, known: set[str]) -> None:
        """Copy the files that lines name, before the lines: a mirrored line never names what is not there."""
        lines = [json.loads(line) for line in part.data.splitlines()]
        names = dict.fromkeys(line[key] for line in lines for key in FILE_KEYS if line.get(key) is not None)
        missing = [name for name in names if name not in known]
        for start in range(0, len(missing), BATCH):
            self._go_on()
            batch = missing[start : start + BATCH]
            self._store.put({name: folder.inside(name).read_bytes() for name in batch})
            known.update(batch)


@contextlib.contextmanager
def mirrored(url: str | None, path: Path | None = None) -> Iterator[Mirror | None]:
    """Hold the mirror at an address; None where none is asked for.

    Args:
        url: any address that fsspec knows.
        path: a run folder that is first brought up to the mirror; it need not exist.

    Raises:
        ConfigError: for an address that cannot be used, or credentials that are missing or refused.
        RunHeldError: when another coordinator holds the mirror, or the folder.
        StateError: when neither has a run, or they are two; when one run was continued in two places.
        StorageError: when the mirror cannot be reached, or the disk refuses.
    """
    if url is None:
        yield None
        return
    store = MirrorStore(url)
    with contextlib.ExitStack() as folder:
        if path is not None:
            if not (path / CONFIG).exists() and not store.has_run():
                raise StateError(f"{path}: no run is there, and none at the mirror {store.shown}; start one first")
            with storage_errors(path, "creating the run folder"):
                path.mkdir(parents=True, exist_ok=True)
            folder.enter_context(Lease(path))
        lease = MirrorLease(store, PACE)
        lease.acquire(path)
        mirror = Mirror(store, lease, PACE)
        try:
            if path is not None:
                brought = restore(store, path)
                if brought:
                    _log.warning("%s: %d lines of the journal came from the mirror %s", path, brought, store.shown)
            folder.close()
            yield mirror
        finally:
            mirror.close(HURRY_S)


def fetch(url: str, path: Path) -> int:
    """Bring a run folder up to its mirror, without holding the mirror; return how many lines of the journal came.

    A run that is copied to the mirror meanwhile is fetched as far as it is.

    Raises:
        ConfigError: for an address that cannot be used, or credentials that are missing or refused.
        RunHeldError: when a coordinator holds the folder.
        StateError: when no run is there, or the folder is another run or went on separately.
        StorageError: when the mirror cannot be reached, or the disk refuses.
    """
    store = MirrorStore(url)
    if not store.has_run():
        raise StateError(f"--mirror {store.shown}: no run is there; correct the address")
    with storage_errors(path, "creating the run folder"):
        path.mkdir(parents=True, exist_ok=True)
    with Lease(path):
        return restore(store, path)


def has_run(url: str | None) -> bool:
    """Tell whether a run is mirrored at an address.

    Raises:
        ConfigError: for an address that cannot be used.
        StorageError: when it cannot be reached.
    """
    return url is not None and MirrorStore(url).has_run()
