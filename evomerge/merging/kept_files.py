"""What was computed of models, kept between processes in safetensors files of the user's cache folder.

Each file is named by the SHA-256 of what it was computed of: contents, not paths. It is only a cache: a damaged file is
made again, and a disk that refuses costs time. The files of one kind take at most a quarter of what the disk has left
without them; for a new one those go that were not used for longest, but none that was used within the hour, since a
search that needs more than there is room for would otherwise make every file again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor

from evomerge.checkpoints.digests import cache_folder, tensor_bytes
from evomerge.checkpoints.files import WeightFile
from evomerge.errors import SourceError

if TYPE_CHECKING:
    from evomerge.operators.kernels.context import Tensors

_VERSION = 2
"""To be raised when what is computed changes."""
_SUM = "crc32"
_SHARE = 0.25
_IN_USE_S = 3600.0
_ALIGNMENT = 64
_sound: set[Path] = set()
"""Files that this process has written, or read once and found to be as they were written."""


class KeptFile:
    """Where some tensors are kept, if they are.

    Args:
        kind: the folder.
        contents: what they are of, content hashes before all; equal for equal tensors alone.
    """

    def __init__(self, kind: str, contents: Sequence[str | int]) -> None:
        text = json.dumps([_VERSION, *contents])
        self._path = cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def read(self) -> Tensors | None:
        """Return the tensors, mapped into memory, as they were written; None: there are none, or the file is damaged.

        They must not be changed.
        """
        try:
            file = WeightFile(self._path)
            tensors = tuple(file.tensor(str(place)) for place in range(len(file.infos)))
        except SourceError:
            return None
        if self._path not in _sound:
            if file.metadata.get(_SUM) != _checksum(tensors):
                return None
            _sound.add(self._path)
        with contextlib.suppress(OSError):
            os.utime(self._path)
        # Where a matrix begins may decide how it is multiplied, down to the last bit.
        return tuple(tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone() for tensor in tensors)

    def write(self, tensors: Tensors) -> bool:
        """Keep tensors of the CPU, each contiguous; return whether the disk has taken them."""
        from safetensors.torch import save_file

        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not _has_room(folder, num_bytes(tensors)):
                return False
            handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
            os.close(handle)
            try:
                named = {str(place): tensor for place, tensor in enumerate(tensors)}
                save_file(named, name, metadata={_SUM: _checksum(tensors)})
                Path(name).replace(self._path)
            finally:
                Path(name).unlink(missing_ok=True)
        except (OSError, SafetensorError):
            return False
        _sound.add(self._path)
        return True


def num_bytes(tensors: Tensors) -> int:
    """Return the size of some tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def _checksum(tensors: Iterable[Tensor]) -> str:
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor_bytes(tensor), found)
    return str(found)


def _has_room(folder: Path, size: int) -> bool:
    """Tell whether a file may be added, after others have gone."""
    files = sorted((status.st_mtime, status.st_size, path) for path, status in _listed(folder))
    taken = sum(size_ for _, size_, _ in files)
    most = _SHARE * (shutil.disk_usage(folder).free + taken)
    for used, freed, path in files:
        if taken + size <= most or time.time() - used < _IN_USE_S:
            break
        path.unlink(missing_ok=True)
        taken -= freed
    return taken + size <= most


def _listed(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has moved or removed it
            found.append((path, path.stat()))
    return found
