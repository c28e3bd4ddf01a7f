"""Per-sample scores as content-addressed files: `scores/<SHA-256 of the file>.safetensors`.

A file is written whole and fsynced before the event that names it. Equal content gives equal bytes, so a
name says what is in a file, and scoring an equal model again adds nothing. How long scoring took is
therefore not in it: that stands in the event.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import StateError
from evomerge.fitness.types import Evaluation
from evomerge.run.storage import storage_errors, sync_folder, write_atomically

FOLDER = "scores"
_SUFFIX = ".safetensors"
_KEY = "evaluation"


def encode_scores(evaluation: Evaluation) -> bytes:
    """Return an evaluation as bytes, the same ones for the same content; `seconds` are left out."""
    from safetensors.numpy import save

    note = {
        "version": 1,
        "split": evaluation.split,
        "documents": {task: list(hashes) for task, hashes in evaluation.documents.items()},
        "facts": {name: float(value) for name, value in evaluation.facts.items()},
        "infeasible": evaluation.infeasible,
    }
    tensors = {name: np.ascontiguousarray(array, dtype="<f8") for name, array in evaluation.samples.items()}
    # One metadata key alone: safetensors writes several in an order that changes from call to call.
    return save(tensors, metadata={_KEY: json.dumps(note, sort_keys=True, separators=(",", ":"))})


def decode_scores(data: bytes) -> Evaluation:
    """Return the evaluation of `encode_scores` bytes, with no `seconds`.

    Raises:
        ValueError: for bytes that are not one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        samples = load(data)
        length = int.from_bytes(data[:8], "little")
        note = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        return Evaluation(
            split=note["split"],
            samples={name: cast("NDArray[np.float64]", samples[name]) for name in sorted(samples)},
            documents={task: tuple(hashes) for task, hashes in note["documents"].items()},
            facts=note["facts"],
            infeasible=note["infeasible"],
        )
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not an evaluation ({error})") from None


class ScoreStore:
    """The score files of one run folder.

    Args:
        root: the run folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._is_synced = True

    def write(self, evaluation: Evaluation, *, synced: bool = True) -> str:
        """Write an evaluation, on disk when this returns; return its path within the run folder.

        Args:
            evaluation: what to write.
            synced: whether its name is to last too; else `sync` sees to that, for many at once.

        Raises:
            StorageError: when the disk refuses.
        """
        data = encode_scores(evaluation)
        relative = f"{FOLDER}/{hashlib.sha256(data).hexdigest()}{_SUFFIX}"
        path = self._root / relative
        with storage_errors(path, "writing"):
            path.parent.mkdir(exist_ok=True)
            known = path.exists() and path.read_bytes() == data
        if not known:
            write_atomically(path, data, synced=False)
        self._is_synced = False
        if synced:
            self.sync()
        return relative

    def sync(self) -> None:
        """Make the names of all files last that were written.

        Raises:
            StorageError: when the disk refuses.
        """
        if not self._is_synced:
            folder = self._root / FOLDER
            with storage_errors(folder, "writing"):
                sync_folder(folder)
            self._is_synced = True

    def read(self, relative: str) -> Evaluation:
        """Read and check a score file.

        Raises:
            StateError: when it is missing, was changed, or its path is not one of a score file.
        """
        path = self._path(relative)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StateError(f"{path}: this score file is missing; restore the run folder from a copy") from None
        except OSError as error:
            raise StateError(f"{path}: cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(data).hexdigest() != path.stem:
            raise StateError(
                f"{path}: this score file was changed after it was written (its SHA-256 is not its name); "
                "restore the run folder from a copy"
            )
        try:
            return decode_scores(data)
        except ValueError as error:
            raise StateError(f"{path}: {error}; a score file was expected") from None

    def _path(self, relative: str) -> Path:
        """Return the full path of a name that an event carries; only names that `write` makes are taken."""
        parts = PurePosixPath(relative)
        digest = parts.stem
        plain = len(digest) == 64 and all(digit in "0123456789abcdef" for digit in digest)
        if relative != f"{FOLDER}/{digest}{_SUFFIX}" or not plain:
            raise StateError(f"{self._root}: {relative!r} is not the path of a score file of this run")
        return self._root / relative

    def samples(self, relative: str) -> Mapping[str, NDArray[np.float64]]:
        """Return the samples of a file, read and checked only when they are looked at."""
        return LazySamples(self, relative)


class LazySamples(Mapping[str, "NDArray[np.float64]"]):
    """Per-sample scores that are read from their file at the first look."""

    def __init__(self, store: ScoreStore, relative: str) -> None:
        self._store = store
        self._relative = relative
        self._loaded: Mapping[str, NDArray[np.float64]] | None = None

    def _samples(self) -> Mapping[str, NDArray[np.float64]]:
        if self._loaded is None:
            self._loaded = self._store.read(self._relative).samples
        return self._loaded

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._samples()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples())

    def __len__(self) -> int:
        return len(self._samples())
