"""Digests of tensors, kept between processes, so that a large model is hashed once and not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from evomerge.checkpoints.files import DTYPE_NAMES, WeightFile
from evomerge.checkpoints.types import TensorInfo

_VOLATILE = frozenset({"transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "torch_dtype", "dtype"})
# A file changed again within the clock's granularity would keep its stamp: do not trust fresh ones.
_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path:
    """Return the user's cache folder: `$EVOMERGE_CACHE`, else `evomerge` under the XDG cache folder."""
    if own := os.environ.get("EVOMERGE_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "evomerge"
    return Path("~/.cache/evomerge").expanduser()


def canonical_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what says nothing about the model: versions, paths, the dtype's name."""
    return {
        key: canonical_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _VOLATILE
    }


def content_hash(config: Mapping[str, Any], infos: Mapping[str, TensorInfo], digests: Mapping[str, str]) -> str:
    """Return the SHA-256 (hex) of a model: its canonical configuration, and every tensor by name.

    Sharding, file names and the order in files do not enter.

    Args:
        config: the parsed `config.json`.
        infos: shape and dtype by tensor name.
        digests: BLAKE3 (hex) of each tensor's bytes by name.
    """
    tensors = [[name, DTYPE_NAMES[infos[name].dtype], list(infos[name].shape), digests[name]] for name in sorted(infos)]
    document = {"config": canonical_config(config), "tensors": tensors}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, in row-major order, without a copy where it is contiguous already."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_digest(tensor: Tensor) -> str:
    """Return the BLAKE3 (hex) of a CPU tensor's bytes: it is several times faster than SHA-256."""
    return blake3(tensor_bytes(tensor)).hexdigest()


def file_digests(file: WeightFile) -> dict[str, str]:
    """Return the BLAKE3 (hex) of every tensor of a file, from the cache where the file is unchanged."""
    stamp = _stamp(file.path)
    entry = cache_folder() / "digests" / f"{hashlib.sha256(stamp['path'].encode()).hexdigest()}.json"
    known = _read(entry, stamp)
    if known is not None and known.keys() == file.infos.keys():
        return known
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter lock
        digests = dict(zip(file.infos, pool.map(lambda name: _digest(file, name), file.infos), strict=True))
    if stamp == _stamp(file.path) and time.time_ns() - stamp["mtime_ns"] > _SETTLED_NS:
        _write(entry, {**stamp, "tensors": digests})
    return digests


def _digest(file: WeightFile, name: str) -> str:
    return tensor_digest(file.tensor(name))


def _stamp(path: Path) -> dict[str, Any]:
    real = path.resolve()
    status = real.stat()
    return {"digest": "blake3", "path": str(real), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read(entry: Path, stamp: Mapping[str, Any]) -> dict[str, str] | None:
    try:
        data = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # no entry, or a broken one: it is only a cache
    if not isinstance(data, dict) or any(data.get(key) != value for key, value in stamp.items()):
        return None
    digests = data.get("tensors")
    if not isinstance(digests, dict):
        return None
    fine = all(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in digests.values())
    return digests if fine else None


def _write(entry: Path, data: Mapping[str, Any]) -> None:
    # A cache that cannot be written (read-only home, full disk) costs time only.
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file)
            Path(temporary).replace(entry)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
