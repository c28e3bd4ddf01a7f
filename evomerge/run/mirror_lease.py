"""The lease of a mirror: one coordinator copies to it, whichever machine it is on.

Object stores give no locks, so the lease is a file, `holder.json`, that its holder writes again every few
seconds. Whoever wants it watches that file: a change means that the holder lives, and the run is held. One that
does not change for a minute is taken over. No two machines' clocks are compared, but for a note that is older than
a quarter of an hour, which is taken over at once.

What this cannot give: two coordinators that take it over at the same instant, or a holder that could not write
for a minute and is still there. Both look at the file before they write it again, and the one that finds the
other's name stops copying; its run goes on in its own folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evomerge.errors import EvomergeError, RunHeldError
from evomerge.run.mirror_store import MirrorStore

HOLDER = "holder.json"
OLD = timedelta(minutes=15)
"""A holder's last sign of life that is older is not waited for; machines' clocks agree better than that."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a mirror is looked after, in seconds."""

    every_s: float = 5.0
    """Between two looks at the journal."""
    longest_wait_s: float = 60.0
    """Between two attempts while it cannot be written; the first come sooner."""
    flush_s: float = 30.0
    """How long the end of a session may take to copy the rest."""
    beat_s: float = 10.0
    """Between two signs of life."""
    stale_s: float = 60.0
    """Without a sign of life for so long a holder is gone."""
    look_s: float = 2.0
    """Between two looks at another holder's file."""


class TakenOverError(RunHeldError):
    """Another coordinator has taken the mirror."""


class MirrorLease:
    """Holds a mirror from `acquire` to `release`.

    Args:
        store: the mirror.
        pace: how often it is renewed, and when another's counts as gone.
        sleep: waits so many seconds.
    """

    def __init__(self, store: MirrorStore, pace: Pace, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._pace = pace
        self._sleep = sleep
        self._id = uuid.uuid4().hex
        self._place = self._told_place = ""
        self._due_s = 0.0

    def acquire(self, folder: Path | None = None) -> None:
        """Take the mirror.

        Args:
            folder: the run folder, where it is there already and its own lease is held: a holder that worked in
                the same folder of this machine is then gone for certain.

        Raises:
            RunHeldError: when another coordinator holds it.
            ConfigError: when the address or the credentials are refused.
            StorageError: when it cannot be read or written.
        """
        self.name(folder)
        before = self._store.get(HOLDER)
        if before is not None:
            self._watch(before)
        self._write()
        self._check()

    def name(self, folder: Path | None) -> None:
        """Say with the next sign of life, which is due then, which folder is worked in."""
        self._place = "" if folder is None else _place(folder)

    def beat(self) -> None:
        """Give a sign of life where it is time.

        Raises:
            TakenOverError: when another coordinator has taken the mirror.
            StorageError: when it cannot be written.
        """
        if time.monotonic() >= self._due_s or self._told_place != self._place:
            self._check()
            self._write()

    def release(self) -> None:
        """Give the mirror back; one that cannot be reached becomes free by itself."""
        with contextlib.suppress(EvomergeError):
            self._check()
            self._store.delete(HOLDER)

    def _watch(self, before: bytes) -> None:
        """Wait until the holder of a file is certain to be gone.

        Raises:
            RunHeldError: as soon as it gives a sign of life.
        """
        who = _read(before)
        if (self._place and who.get("place") == self._place) or _is_old(who):
            return
        whom = f"process {who.get('pid')} on {who.get('host')}"
        _log.warning(
            "mirror %s: waiting up to %g s for a sign of life of %s", self._store.shown, self._pace.stale_s, whom
        )
        end = time.monotonic() + self._pace.stale_s
        while time.monotonic() < end:
            self._sleep(self._pace.look_s)
            now = self._store.get(HOLDER)
            if now is None:
                return
            if now != before:
                raise RunHeldError(
                    f"--mirror {self._store.shown}: the run is held by {whom}; pause or stop it there, or wait until "
                    "it ends"
                )

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        place = self._place
        note = {"id": self._id, "pid": os.getpid(), "host": socket.gethostname(), "place": place, "time": now}
        self._store.put({HOLDER: json.dumps(note).encode()})
        self._told_place = place
        self._due_s = time.monotonic() + self._pace.beat_s

    def _check(self) -> None:
        data = self._store.get(HOLDER)
        who = {} if data is None else _read(data)
        if data is not None and who.get("id") != self._id:
            raise TakenOverError(
                f"--mirror {self._store.shown}: process {who.get('pid')} on {who.get('host')} has taken it over; "
                "only one coordinator may copy to it"
            )


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _is_old(who: dict[str, Any]) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(str(who.get("time"))) > OLD
    except (ValueError, TypeError):
        return False


def _place(folder: Path) -> str:
    """Return what names a folder of this machine until it is started again; empty where nothing does."""
    try:
        boot, found = _BOOT.read_text().strip(), folder.stat()
    except OSError:
        return ""
    text = f"{socket.gethostname()} {boot} {found.st_dev} {found.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
