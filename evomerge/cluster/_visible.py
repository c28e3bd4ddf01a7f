"""Whether every node sees the same files as the coordinator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import ConfigError

MOST_FILES = 64
"""Of a folder, so many files are compared, in the order of their names."""
HEAD_BYTES = 65536
"""Of a file, so many bytes are compared, and its size: the headers of weights are within, the weights are not."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A file or folder, and a digest of what is in it."""

    path: Path
    digest: str


def marks(paths: Iterable[Path]) -> tuple[Mark, ...]:
    """Return the marks of files and folders that exist here; give no folder whose files change during a run."""
    return tuple(Mark(path, _digest(path)) for path in map(Path.absolute, paths))


def check(expected: Iterable[Mark], node: str) -> None:
    """Refuse a node that does not see the same.

    Raises:
        ConfigError: naming the first path, and the node.
    """
    for mark in expected:
        found = _digest(mark.path)
        if found != mark.digest:
            what = "sees other content there than the coordinator" if found else "does not see it"
            raise ConfigError(
                f"{mark.path}: the node {node} {what}; put it in a folder that all nodes share, at the same path, or "
                "give a hub id where it is a model"
            )


def _digest(path: Path) -> str:
    """Return a digest of a file, or of the files directly inside a folder; empty where there is neither."""
    try:
        if path.is_file():
            return _file(path)
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        lines = [f"{file.name} {_file(file)}" for file in files[:MOST_FILES]]
    except OSError:
        return ""
    return hashlib.sha256("\n".join([str(len(files)), *lines]).encode()).hexdigest()


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.stat().st_size} {hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()}"
