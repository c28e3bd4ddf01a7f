"""Writing a checkpoint tensor by tensor, with constant memory, and as a whole or not at all.

A safetensors file is 8 bytes (the header's length, little-endian), a JSON header padded with spaces to a
multiple of 8, and the tensors' bytes. Everything in the header is known from the plan, so the file is laid
out first, and each tensor is written to its place when it comes, in any order.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from evomerge.checkpoints.digests import tensor_bytes
from evomerge.checkpoints.direct import DirectFile
from evomerge.checkpoints.files import DTYPE_NAMES, INDEX_NAME
from evomerge.checkpoints.types import TensorInfo
from evomerge.errors import ConfigError, StorageError

DEFAULT_SHARD_BYTES = 5_000_000_000
"""Largest shard unless told otherwise, as transformers has it."""


@dataclass(frozen=True, slots=True)
class _Shard:
    name: str
    header: bytes
    offsets: Mapping[str, int]
    """Tensor name -> where its bytes start in the file."""


class CheckpointWriter:
    """Writes one checkpoint folder; use as a context manager.

    Everything goes to a temporary folder beside the target, which is renamed when the block ends without an
    error. Whatever ends it otherwise leaves nothing behind.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp()) / "model"
        >>> with CheckpointWriter(folder, {"w": TensorInfo((2,), torch.float32)}) as writer:
        ...     writer.write("w", torch.zeros(2))
        >>> sorted(path.name for path in folder.iterdir())
        ['model.safetensors']
    """

    def __init__(
        self,
        out: Path,
        infos: Mapping[str, TensorInfo],
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        stem: str = "model",
    ) -> None:
        """Plan the shards; nothing is written before the block is entered.

        Args:
            out: the folder to make; it must not exist, or be empty.
            infos: shape and dtype of every tensor that will be written, in the order that fills the shards.
            max_shard_bytes: largest size of a shard's tensors, > 0; a larger tensor has a shard of its own.
            stem: what the weights files' names begin with.

        Raises:
            ConfigError: when `out` exists and is not an empty folder, or a size is not positive.
        """
        check_free(out)
        if max_shard_bytes < 1:
            raise ConfigError(f"the largest shard must hold at least 1 byte, got {max_shard_bytes}")
        self._out = out
        self._infos = dict(infos)
        self._shards = _plan_shards(self._infos, max_shard_bytes, stem)
        self._shard_of = {name: shard for shard in self._shards for name in shard.offsets}
        self._pending = set(self._infos)
        self._folder: Path | None = None
        self._files: dict[str, DirectFile] = {}
        self._left = {shard.name: len(shard.offsets) for shard in self._shards}

    @property
    def folder(self) -> Path:
        """The temporary folder: what is put here comes along.

        Raises:
            RuntimeError: outside of the `with` block.
        """
        if self._folder is None:
            raise RuntimeError("a CheckpointWriter is used in a `with` block")
        return self._folder

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(info.num_bytes for info in self._infos.values())

    def __enter__(self) -> Self:
        with storage_errors(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._out.parent).free
            if free < self.num_bytes:
                raise StorageError(
                    f"{self._out}: {self.num_bytes:,} bytes of weights do not fit on a disk with "
                    f"{free:,} bytes free; free some space or write elsewhere"
                )
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self._out.name}.", suffix=".tmp", dir=self._out.parent))
            self._folder.chmod(0o777 & ~_umask())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with storage_errors(self._out):
                    self._commit()
        finally:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close(sync=False)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place.

        Args:
            name: one of the planned names, not written yet.
            tensor: on any device, of the planned shape and dtype.

        Raises:
            KeyError: for a name that was not planned, or was written already.
            ValueError: for a tensor of another shape or dtype than planned.
            StorageError: when the disk refuses.
        """
        info = self._infos[name]
        self._pending.remove(name)
        if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            raise ValueError(
                f"tensor {name!r} was planned as {info.shape} {info.dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
            )
        shard = self._shard_of[name]
        with storage_errors(self._out):
            self._open(shard).write(shard.offsets[name], tensor_bytes(tensor.detach().cpu()))
            self._left[shard.name] -= 1
            if not self._left[shard.name]:
                self._files.pop(shard.name).close()

    def add(self, make: Callable[[Path], None]) -> None:
        """Let a function put further files into the folder.

        Raises:
            StorageError: when the disk refuses.
        """
        with storage_errors(self._out):
            make(self.folder)

    def _open(self, shard: _Shard) -> DirectFile:
        if shard.name not in self._files:
            self._files[shard.name] = DirectFile(self.folder / shard.name)
            self._files[shard.name].write(0, memoryview(shard.header))
        return self._files[shard.name]

    def _commit(self) -> None:
        if self._pending:
            raise ValueError(f"{len(self._pending)} planned tensors were not written, such as {min(self._pending)!r}")
        if len(self._shards) > 1:
            weight_map = {name: shard.name for shard in self._shards for name in shard.offsets}
            index = {
                "metadata": {"total_size": self.num_bytes},
                "weight_map": dict(sorted(weight_map.items())),
            }
            (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        written = {shard.name for shard in self._shards}
        for path in sorted(self.folder.rglob("*")):
            if path.name not in written:
                _fsync(path)
        _fsync(self.folder)
        check_free(self._out)
        self.folder.rename(self._out)
        self._folder = None
        _fsync(self._out.parent)


def check_free(out: Path) -> None:
    """Refuse a target that exists already, unless it is an empty folder.

    Raises:
        ConfigError: naming it.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise ConfigError(f"{out}: this folder is not empty; name a new one, nothing is overwritten")
    elif out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: this exists and is not a folder; name a new one, nothing is overwritten")


@contextlib.contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turn an `OSError` of the file system into a `StorageError` about `out`.

    Raises:
        StorageError: with the reason.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        todo = "free some space or write elsewhere" if full else "check the folder's permissions and the disk"
        reason = error.strerror or str(error)
        raise StorageError(f"{out}: cannot be written ({reason}); {todo}; nothing was left there") from None


def _plan_shards(infos: Mapping[str, TensorInfo], max_shard_bytes: int, stem: str) -> list[_Shard]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if groups[-1] and size + info.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += info.num_bytes
    total = len(groups)
    if total == 1:
        return [_layout_shard(f"{stem}.safetensors", groups[0], infos)]
    return [
        _layout_shard(f"{stem}-{number:05d}-of-{total:05d}.safetensors", group, infos)
        for number, group in enumerate(groups, start=1)
    ]


def _layout_shard(file_name: str, names: Iterable[str], infos: Mapping[str, TensorInfo]) -> _Shard:
    # Wide dtypes first: every tensor then starts at a multiple of its element size, as mapped readers need.
    order = sorted(names, key=lambda name: (-infos[name].dtype.itemsize, name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    position = 0
    for name in order:
        info = infos[name]
        starts[name] = position
        end = position + info.num_bytes
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return _Shard(file_name, header, {name: len(header) + start for name, start in starts.items()})


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
