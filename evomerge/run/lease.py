"""The lease of a run: one coordinator at a time.

The lock is the operating system's (flock, through filelock) on `coordinator.lock`: it ends with the process,
however that ends. Beside it, `coordinator.json` says for people who holds it: process, host, since when.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from evomerge.errors import RunHeldError
from evomerge.run.storage import storage_errors, write_atomically

LOCK_NAME = "coordinator.lock"
HOLDER_NAME = "coordinator.json"
_PATIENCE_S = 0.5
"""A reader's test of the lock holds it for an instant; a coordinator waits that long before it gives up."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a run."""

    pid: int
    host: str
    since: str
    """ISO 8601, UTC."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lease:
    """Holds a run folder from `acquire` (or `with`) to `release`; the end of the process releases it too.

    Args:
        folder: an existing run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK_NAME, thread_local=False)

    def acquire(self) -> Self:
        """Take the lease.

        Raises:
            RunHeldError: when another coordinator holds it; the text says which.
            StorageError: when the lock file cannot be written.
        """
        with storage_errors(self._folder / LOCK_NAME, "locking"):
            try:
                self._lock.acquire(timeout=_PATIENCE_S)
            except Timeout:
                who = read_holder(self._folder)
                raise RunHeldError(
                    f"{self._folder}: the run is held by {who or 'another process'}; "
                    "pause or stop it there, or wait until it ends"
                ) from None
        try:
            now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            holder = Holder(pid=os.getpid(), host=socket.gethostname(), since=now)
            write_atomically(self._folder / HOLDER_NAME, (json.dumps(asdict(holder)) + "\n").encode())
        except BaseException:
            self._lock.release()
            raise
        return self

    def release(self) -> None:
        """Give the lease back; nothing happens where it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self._folder / HOLDER_NAME).unlink(missing_ok=True)
            self._lock.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the lease."""
        return self._lock.is_locked

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(folder: Path) -> bool:
    """Tell whether a coordinator holds the run. Never writes, and works on folders that cannot be written."""
    try:
        import fcntl
    except ImportError:  # no flock on this system: the note is all there is
        return read_holder(folder) is not None
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        # A shared lock: two readers do not see each other as a coordinator.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return read_holder(folder) is not None
    else:
        return False
    finally:
        os.close(descriptor)


def read_holder(folder: Path) -> Holder | None:
    """Return who held the run last, as its note says, or None; `is_held` tells whether it still does."""
    try:
        data = json.loads((folder / HOLDER_NAME).read_bytes())
        return Holder(pid=int(data["pid"]), host=str(data["host"]), since=str(data["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
