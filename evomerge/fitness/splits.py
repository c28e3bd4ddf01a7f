"""Which documents the search may see: a split by the hash of each document.

A document's share is decided by its content alone, so it does not change with the order or number of
documents, and equal documents (of one task or of several tasks over the same data) never stand on both
sides of a split.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.fitness.config import SplitsConfig
from evomerge.fitness.types import SPLITS, Split

MINIMUM = 2
"""Fewest documents of a split in use: a standard error needs two."""


def document_hash(document: Any) -> str:
    """Return the SHA-256 (hex) of a document's canonical JSON: keys sorted, compact, UTF-8.

    Raises:
        ConfigError: for a document that holds something with no plain form (an image, an open file).
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def split_of(digest: str, shares: SplitsConfig) -> Split:
    """Return the split of a document.

    Args:
        digest: the document's hash, 64 hexadecimal digits; its first 64 bits, read as a fraction of 2^64, are
            where the document lies in the interval [0, 1) that the shares divide in the order of `SPLITS`.
        shares: the share of each split.
    """
    place = int(digest[:16], 16) / 2**64
    edge = 0.0
    last: Split = "search"
    for name in SPLITS:
        share: float = getattr(shares, name)
        if share <= 0:
            continue
        edge += share
        last = name
        if place < edge:
            return name
    return last  # rounding of the sum of the shares leaves the last split that has one


def assign(task: str, digests: Sequence[str], shares: SplitsConfig) -> dict[Split, tuple[int, ...]]:
    """Divide a task's documents.

    Args:
        task: its name, for errors.
        digests: hash of each document.
        shares: the share of each split.

    Returns:
        Split to the positions of its documents, ascending; a split with no share is empty.

    Raises:
        ConfigError: when a split with a share has fewer than two documents.
    """
    parts: dict[Split, list[int]] = {name: [] for name in SPLITS}
    for position, digest in enumerate(digests):
        parts[split_of(digest, shares)].append(position)
    for name in SPLITS:
        if getattr(shares, name) > 0 and len(parts[name]) < MINIMUM:
            raise ConfigError(
                f"task {task!r}: the {name} split has {len(parts[name])} of {len(digests)} documents and "
                f"needs {MINIMUM}; give the task more documents (limit) or change the suite's splits"
            )
    return {name: tuple(positions) for name, positions in parts.items()}


def _plain(value: Any) -> Any:
    """Return a JSON form of what documents hold beside JSON."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, tensors
        return value.tolist()
    raise ConfigError(
        f"a document holds a {type(value).__name__}, which has no plain form; only tasks over text are scored"
    )
