"""Large parts of a file put on the disk past the system's page cache, where it allows that.

The cache copies whatever is written, into memory that it first has to find: for a merge on a CPU that takes longer than
the arithmetic, and it pushes the sources out.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

_BLOCK = 4096
"""Direct writes begin and end at multiples of it, in the file and in memory; every disk's sectors divide it."""
_PIECE = 8 << 20
"""Bytes that are written at a time."""
_LARGE = 1 << 20
"""Bytes from which a part is written directly."""


class DirectFile:
    """A new file that is written in parts, in any order, and is on the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        """Make the file.

        Raises:
            OSError: when the system refuses.
        """
        self._cached = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._direct: int | None = None
        self._piece: mmap.mmap | None = None
        if hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):  # a file system without direct writes
                self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes to their place; parts do not overlap.

        Raises:
            OSError: when the disk refuses.
        """
        start, stop = -(-offset // _BLOCK) * _BLOCK, (offset + len(data)) // _BLOCK * _BLOCK
        if len(data) < _LARGE or self._direct is None:
            start = stop = offset + len(data)
        self._write_cached(offset, data[: start - offset])
        self._write_directly(start, data[start - offset : stop - offset])
        self._write_cached(stop, data[stop - offset :])

    def close(self, *, sync: bool = True) -> None:
        """Close the file, after everything is on the disk unless that does not matter any more.

        Raises:
            OSError: when the disk refuses.
        """
        try:
            if sync:
                os.fsync(self._cached)
        finally:
            os.close(self._cached)
            if self._direct is not None:
                os.close(self._direct)

    def _write_cached(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._cached, data, offset)
            offset, data = offset + written, data[written:]

    def _write_directly(self, offset: int, data: memoryview) -> None:
        """Write whole blocks, from memory that begins where a block may."""
        while data and self._direct is not None:
            if self._piece is None:
                self._piece = mmap.mmap(-1, _PIECE)
            size = min(len(data), _PIECE)
            self._piece[:size] = data[:size]
            try:
                with memoryview(self._piece)[:size] as piece:
                    written = os.pwrite(self._direct, piece, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # larger sectors than any known, or a file system that says so only now
                self._direct = None
                break
            offset, data = offset + written, data[written:]
        self._write_cached(offset, data)
