"""Statistic files: what was measured of a model beforehand, in safetensors, mapped into memory when it is read.

A folder holds one file a kind: `fisher.safetensors`, `adam.safetensors`, `gram.safetensors`. Each says in its header
which model it was measured of, by content hash, and how.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from evomerge.checkpoints.digests import file_digests
from evomerge.checkpoints.files import WeightFile
from evomerge.checkpoints.reader import is_finite
from evomerge.checkpoints.types import ModelSource
from evomerge.checkpoints.writer import storage_errors
from evomerge.errors import SourceError
from evomerge.operators.kernels.selection import stream_threshold
from evomerge.operators.metadata import StatisticKind

KINDS: tuple[StatisticKind, ...] = get_args(StatisticKind)
_VERSION = 1
_KEY = "statistic"
_AGAIN = "compute it again with `evomerge stats`"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticNote:
    """What the header of a statistic file says."""

    kind: StatisticKind
    source: str
    """Content hash of the model."""
    calibration: str
    """SHA-256 (hex) of the tokens that it was computed from, or of the tensors that it was taken from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed."""
    done: int = 0
    """Examples that are in it."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Of a file that is not finished: tensor name -> number of tokens that its sum is of."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Kind `gram`: parameters whose inputs are those of another one -> that one, under which the matrix is stored."""
    mean: float = 1.0
    """Of all entries, > 0; of kind `gram` it says nothing, as the next two."""
    median: float = 1.0
    """Of the positive entries."""
    norm: float = 1.0
    """2-norm of all entries."""

    def is_of(self, other: StatisticNote) -> bool:
        """Tell whether both are of one model and computed alike, from the same."""
        mine, theirs = ((one.kind, one.source, one.calibration, one.settings) for one in (self, other))
        return mine == theirs


class StatisticFile:
    """One statistic file; its header is checked when it is opened, and tensors are views of the mapped file."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            SourceError: when it cannot be read, or is no statistic file of this version.
        """
        self.path = path
        self._file = WeightFile(path)
        self.note = _read_note(path, self._file.metadata)

    def names(self) -> tuple[str, ...]:
        """Return the parameters of which something is stored, sorted; not those that share another one's."""
        return tuple(sorted(self._file.infos))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what is stored of a parameter."""
        return self._file.infos[name].shape

    def tensor(self, name: str) -> Tensor | None:
        """Return what was measured of a parameter, as float32; it must not be changed. None: nothing.

        Raises:
            SourceError: when the file cannot be read any more.
        """
        stored = self.note.shared.get(name, name)
        return self._file.tensor(stored).float() if stored in self._file.infos else None

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the header and of every tensor."""
        document = {"note": asdict(self.note), "tensors": file_digests(self._file)}
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def check(self, model: ModelSource) -> None:
        """Hold the file against the model that it is used for.

        Raises:
            SourceError: when it was computed for another model, or does not fit it.
        """
        if self.note.source != model.content_hash:
            raise SourceError(
                f"{self.path}: this statistic was computed for another model (its content hashes to "
                f"{self.note.source[:12]}, this source's to {model.content_hash[:12]}); {_AGAIN}"
            )
        for name in (*self.names(), *self.note.shared):
            if name not in model.names() or not self._fits(name, model.info(name).shape):
                raise SourceError(f"{self.path}: what it holds of {name!r} does not fit the model; {_AGAIN}")

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        stored = self.note.shared.get(name, name)
        if stored not in self._file.infos:
            return False
        if self.note.kind != "gram":
            return self.shape(stored) == shape
        return len(shape) == 2 and self.shape(stored) in [(size, size) for size in shape]

    def check_values(self, name: str) -> None:
        """Read what was measured of a parameter and refuse NaN, infinity and, in an importance, negative numbers.

        Raises:
            SourceError: naming the file and the parameter.
        """
        tensor = self.tensor(name)
        if tensor is None or tensor.numel() == 0:
            return
        if not is_finite(tensor) or (self.note.kind != "gram" and float(tensor.min()) < 0):
            wanted = (
                "NaN or infinite values" if self.note.kind == "gram" else "values that are negative, NaN or infinite"
            )
            raise SourceError(f"{self.path}: {name!r} has {wanted}; {_AGAIN}")


def open_statistics(folder: Path, model: ModelSource) -> dict[StatisticKind, StatisticFile]:
    """Open the statistic files of a folder, by kind, and hold them against the model.

    Raises:
        SourceError: when there are none, or one cannot be read, is of another kind than its name says, or was computed
            for another model.
    """
    paths: dict[StatisticKind, Path] = {kind: folder / f"{kind}.safetensors" for kind in KINDS}
    found = {kind: StatisticFile(path) for kind, path in paths.items() if path.is_file()}
    if not found:
        raise SourceError(
            f"{folder}: no statistics here; expected a folder with {', '.join(path.name for path in paths.values())} "
            f"or some of these, as `evomerge stats` writes it"
        )
    for kind, file in found.items():
        if file.note.kind != kind:
            raise SourceError(f"{file.path}: this is a statistic of kind {file.note.kind!r}; rename it after its kind")
        file.check(model)
    return found


def write_statistic(path: Path, note: StatisticNote, tensors: Mapping[str, Tensor]) -> None:
    """Write a statistic file, whole or not at all, and on disk when this returns.

    Args:
        path: where; its folder is made, and a file there is replaced.
        note: its header.
        tensors: float32 tensors by parameter name.

    Raises:
        StorageError: when the disk refuses.
    """
    from safetensors.torch import save_file

    text = json.dumps({"version": _VERSION, **asdict(note)}, sort_keys=True, separators=(",", ":"))
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            # One metadata key alone: safetensors writes several in an order that changes from call to call.
            save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, temporary, metadata={_KEY: text})
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def importance_scales(tensors: Iterable[Tensor]) -> dict[str, float]:
    """Return `mean`, `median` (of the positive entries) and `norm` of an importance; 1 where all entries are 0.

    Args:
        tensors: those of the whole model, float32, not negative.
    """
    parts = [tensor.reshape(-1) for tensor in tensors]
    count = sum(part.numel() for part in parts)
    total = math.fsum(float(part.sum(dtype=torch.float64)) for part in parts)
    if total == 0:
        return {"mean": 1.0, "median": 1.0, "norm": 1.0}
    squares = math.fsum(float(part.double().square().sum()) for part in parts)
    median = stream_threshold(lambda: (part[part > 0] for part in parts), 0.5)
    return {"mean": total / count, "median": median, "norm": math.sqrt(squares)}


def _read_note(path: Path, metadata: Mapping[str, str]) -> StatisticNote:
    wrong = SourceError(f"{path}: this is no statistic file; make one with `evomerge stats`")
    if _KEY not in metadata:
        raise wrong
    try:
        data = json.loads(metadata[_KEY])
        version = data.pop("version")
        if version != _VERSION:
            raise SourceError(f"{path}: a statistic file of version {version!r}, expected {_VERSION}; {_AGAIN}")
        note = StatisticNote(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, SourceError):
            raise
        raise wrong from None
    return note
