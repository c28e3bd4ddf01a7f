"""The files of a mirror at an fsspec address.

::

    config.yaml, environment.json
    journal/000000000001-000000000250.jsonl      lines of the journal by their numbers, never changed
    scores/                                      content-addressed, as in the run folder
    artifacts/                                   what the journal's first line names
    holder.json                                  the lease

Object stores cannot append, hence the segments. A segment's lines are those of the journal, byte for byte: the
checksums in them chain the segments together.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.cluster.faults import one_line
from evomerge.errors import ConfigError, EvomergeError, StateError, StorageError
from evomerge.run.folder import CONFIG

JOURNAL_PARTS = "journal"
BATCH = 64
"""So many files are read or written at once."""
FILE_KEYS = ("scores", "grams")
"""Keys of events whose value is the path, within the run folder, of a file."""
_SEGMENT = re.compile(r"journal/(\d{12})-(\d{12})\.jsonl")
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
"""Stores without folders, where a write is seen whole or not at all."""
_REFUSALS = (PermissionError, FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A part of a mirrored journal: lines `first` to `last`, by their `seq`."""

    first: int
    last: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{JOURNAL_PARTS}/{self.first:012d}-{self.last:012d}.jsonl"


class MirrorStore:
    """Reads and writes the files of one mirror; names are relative to its address.

    Args:
        url: any address that fsspec knows, for instance `s3://bucket/runs/first`.

    Raises:
        ConfigError: for an address or a protocol that cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.shown = re.sub(r"//[^/@]*@", "//", url)
        """The address without a password."""
        self._fs, self._root = self._connect(url)
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._has_folders = not set(protocols) & set(_OBJECT_STORES)

    def _connect(self, url: str) -> tuple[Any, str]:
        import fsspec

        if "://" not in url:
            raise ConfigError(
                f"--mirror {self.shown}: not an address; expected one such as s3://bucket/prefix or file:///mnt/backup/run"
            )
        try:
            # An instance of our own: what others of this process list or configure is not mixed up with it.
            filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
        except ImportError as error:
            extra = "install evomerge[mirror]" if url.startswith(("s3://", "s3a://")) else "install what it names"
            raise ConfigError(
                f"--mirror {self.shown}: this protocol needs a library ({_reason(error)}); {extra}"
            ) from None
        except Exception as error:  # noqa: BLE001  each protocol has its own
            raise ConfigError(
                f"--mirror {self.shown}: the address cannot be used ({_reason(error)}); expected one that fsspec "
                "knows, such as s3://bucket/prefix or file:///mnt/backup/run"
            ) from None
        return filesystem, root.rstrip("/")

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn whatever a file system raises into one sentence.

        Raises:
            ConfigError: when the address or the credentials are refused.
            StorageError: for any other failure, which may pass.
        """
        try:
            yield
        except EvomergeError:
            raise
        except Exception as error:
            refused = isinstance(error, _REFUSALS) or "Credentials" in type(error).__name__
            what = "check the address and the credentials" if refused else "check the address, or try again later"
            text = f"--mirror {self.shown}: {doing} failed ({_reason(error)}); {what}"
            raise (ConfigError(text) if refused else StorageError(text)) from error

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files, each seen whole or not at all.

        Raises:
            ConfigError: when the address or the credentials are refused.
            StorageError: for any other failure.
        """
        with self._errors("writing"):
            if not self._has_folders:
                self._fs.pipe({self._path(name): data for name, data in files.items()})
                return
            for name, data in files.items():
                path = self._path(name)
                self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                self._fs.pipe_file(f"{path}.tmp", data)
                self._fs.mv(f"{path}.tmp", path)

    def get(self, name: str) -> bytes | None:
        """Return a file's content, or None where there is none.

        Raises:
            ConfigError: when the address or the credentials are refused.
            StorageError: for any other failure.
        """
        with self._errors("reading"):
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

    def get_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the content of files that must be there, in order, a batch at a time.

        Raises:
            StateError: naming the first that is missing.
            StorageError: when reading fails.
        """
        rest = list(names)
        while rest:
            batch, rest = rest[:BATCH], rest[BATCH:]
            with self._errors("reading"):
                found = self._fs.cat([self._path(name) for name in batch], on_error="return")
                # One path alone gives its content and no mapping.
                found = found if isinstance(found, dict) else {self._path(batch[0]): found}
                for name in batch:
                    data = found[self._path(name)]
                    if isinstance(data, FileNotFoundError):
                        raise StateError(
                            f"--mirror {self.shown}: {name} is missing there; restore it from another copy"
                        )
                    if isinstance(data, Exception):
                        raise data
                    yield name, bytes(data)

    def delete(self, name: str) -> None:
        """Delete a file.

        Raises:
            StorageError: when that fails.
        """
        with self._errors("deleting"):
            self._fs.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; none where there is no folder.

        Raises:
            ConfigError: when the address or the credentials are refused.
            StorageError: for any other failure.
        """
        with self._errors("listing"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(f"{folder}/{path.rstrip('/').rsplit('/', 1)[-1]}" for path in found)

    def segments(self) -> tuple[Segment, ...]:
        """Return the parts of the journal in order.

        Raises:
            StateError: when lines are missing between them, or two parts hold the same lines.
            StorageError: when listing fails.
        """
        found = [match for name in self.names(JOURNAL_PARTS) if (match := _SEGMENT.fullmatch(name))]
        parts = sorted(Segment(int(match[1]), int(match[2])) for match in found)
        last = 0
        for part in parts:
            if part.first > last + 1:
                raise StateError(
                    f"--mirror {self.shown}: lines {last + 1} to {part.first - 1} of the journal are missing there; "
                    "restore them from another copy, or give another address"
                )
            if part.first <= last or part.last < part.first:
                raise StateError(
                    f"--mirror {self.shown}: line {part.first} of the journal stands there twice, because two "
                    "coordinators copied to it; give another address"
                )
            last = part.last
        return tuple(parts)

    def lines(self, segments: Sequence[Segment]) -> list[bytes]:
        """Return the lines of parts of the journal, without their newlines.

        Raises:
            StateError: when a part does not hold as many lines as its name says.
            StorageError: when reading fails.
        """
        lines: list[bytes] = []
        parts = {segment.name: segment for segment in segments}
        for name, data in self.get_all(list(parts)):
            own = data.split(b"\n")
            if own.pop() or len(own) != parts[name].last - parts[name].first + 1:
                raise StateError(f"--mirror {self.shown}: {name} was changed there; restore it from another copy")
            lines += own
        return lines

    def has_run(self) -> bool:
        """Tell whether a run is mirrored there.

        Raises:
            ConfigError: when the address or the credentials are refused.
            StorageError: for any other failure.
        """
        return self.get(CONFIG) is not None or bool(self.names(JOURNAL_PARTS))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _reason(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__
