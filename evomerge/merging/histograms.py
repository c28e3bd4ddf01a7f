"""Histograms kept between processes, in the user's cache folder: a worker that starts need not read whole models.

Each is a file named by the SHA-256 of what it was counted of: contents, not paths. It is only a cache: a broken file is
counted again, and a disk that refuses costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from evomerge.checkpoints.digests import cache_folder
from evomerge.checkpoints.files import WeightFile
from evomerge.errors import SourceError

_VERSION = 1
_NAME = "counts"


def kept_on_disk(contents: Sequence[str | int], bins: int, count: Callable[[], Tensor]) -> Tensor:
    """Return counts, from the cache where they are known.

    Args:
        contents: what they are of, content hashes before all; equal for equal counts alone.
        bins: how many there are.
        count: makes them: int64 of shape (bins,).
    """
    text = json.dumps([_VERSION, bins, *contents])
    path = cache_folder() / "histograms" / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    known = _read(path, bins)
    if known is not None:
        return known
    counts = count()
    _write(path, counts)
    return counts


def _read(path: Path, bins: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        counts = WeightFile(path).tensor(_NAME)
    except (SourceError, KeyError):
        return None
    return counts if counts.shape == (bins,) and counts.dtype == torch.int64 else None


def _write(path: Path, counts: Tensor) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({_NAME: counts}))
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
