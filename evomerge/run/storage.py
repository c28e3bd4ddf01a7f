"""Files that are whole or absent, and errors of the disk as `StorageError`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import StorageError


@contextlib.contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the file and what to do.

    Raises:
        StorageError: in place of any `OSError`.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"{path}: {doing} failed ({reason}); free space or mend the file system, then resume the run"
        raise StorageError(text) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last: fsync the folder itself, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Write a file so that a reader, and a crash at any instant, sees the old one or the whole new one.

    Args:
        path: where; its folder exists.
        data: the content.
        synced: whether its name is to last too; else the caller syncs the folder.

    Raises:
        StorageError: when the disk refuses; nothing is left behind.
    """
    # One writer holds the run, so the name needs no random part; a leftover of a crash is overwritten.
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path, "writing"):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if synced:
            sync_folder(path.parent)
