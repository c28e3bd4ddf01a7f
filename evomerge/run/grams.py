"""The Gram matrices of a run's sources, kept in its folder: `artifacts/<SHA-256 of the file>.safetensors`.

They are computed once, when a run starts. Afterwards its individuals are crossed, replayed and shown from this file
alone, without the weights. The first line of the journal names it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import StateError
from evomerge.run.config import RunConfig
from evomerge.run.events import Event, Started
from evomerge.run.folder import ARTIFACTS, RunFolder
from evomerge.run.storage import storage_errors, write_atomically
from evomerge.spaces import Grams
from evomerge.spaces.grams import chromosome
from evomerge.spaces.piecewise import WHOLE

if TYPE_CHECKING:
    from evomerge.merging import Sources

_KEY = "grams"


def compute_grams(config: RunConfig, sources: Sources) -> Grams | None:
    """Read every weight of the sources once; None where the space of the search needs no Gram matrices.

    Raises:
        SourceError: when a source has NaN or infinite values, or cannot be read.
    """
    if config.space.kind != "piecewise":
        return None
    from evomerge.merging.grams import block_grams

    named = () if isinstance(config.space.chromosomes, str) else config.space.chromosomes
    blocks = block_grams(sources, tuple(config.sources), named)
    return Grams.of_blocks(tuple(config.sources), {name if named else WHOLE: one for name, one in blocks.items()})


def write_grams(folder: RunFolder, grams: Grams) -> str:
    """Write the file, on disk when this returns; return its path within the run folder.

    Raises:
        StorageError: when the disk refuses.
    """
    data = encode_grams(grams)
    relative = f"{ARTIFACTS}/{hashlib.sha256(data).hexdigest()}.safetensors"
    path = folder.inside(relative)
    with storage_errors(path, "writing"):
        path.parent.mkdir(exist_ok=True)
        known = path.exists() and path.read_bytes() == data
    if not known:
        write_atomically(path, data)
    return relative


def keep_grams(folder: RunFolder, started: Event, grams: Grams | None) -> None:
    """Write the file again where it is gone.

    Raises:
        StateError: when the matrices are not those that the run started with.
    """
    named = started.grams if isinstance(started, Started) else None
    if grams is None or named is None or folder.inside(named).exists():
        return
    if write_grams(folder, grams) != named:
        raise StateError(
            f"{folder.path}: {named} is gone, and the Gram matrices of the sources come out otherwise now; restore the "
            "file from a copy, or continue with the library versions in environment.json"
        )


def stored_grams(folder: RunFolder, started: Event | None) -> Grams | None:
    """Read and check the file that a run started with; None where it needs none.

    Raises:
        StateError: when it is missing or was changed.
    """
    if not isinstance(started, Started) or started.grams is None:
        return None
    path = folder.inside(started.grams)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StateError(f"{path}: this file is missing; resume the run, which makes it again") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise StateError(
            f"{path}: this file was changed after it was written (its SHA-256 is not its name); delete it and resume "
            "the run, which makes it again"
        )
    return decode_grams(data)


def encode_grams(grams: Grams) -> bytes:
    """Return the matrices as bytes, the same ones for the same content."""
    from safetensors.numpy import save

    parts = [[part.name, part.size] for part in grams.chromosomes]
    note = {"version": 1, "sources": list(grams.aliases), "chromosomes": parts}
    # One metadata key alone: safetensors writes several in an order that changes from call to call.
    prefix = np.ascontiguousarray(grams.prefix, dtype="<f8")
    return save({"prefix": prefix}, metadata={_KEY: json.dumps(note, sort_keys=True, separators=(",", ":"))})


def decode_grams(data: bytes) -> Grams:
    """Return the matrices of `encode_grams` bytes.

    Raises:
        StateError: for bytes that are none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        prefix = load(data)["prefix"]
        length = int.from_bytes(data[:8], "little")
        note = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        parts = tuple(chromosome(name, size) for name, size in note["chromosomes"])
        return Grams(tuple(note["sources"]), parts, prefix)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"the file of Gram matrices is none ({error}); resume the run without it") from None
