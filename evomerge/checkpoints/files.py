"""The files of a checkpoint folder: JSON, and safetensors mapped into memory. No pickle is ever opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.checkpoints.types import TensorInfo
from evomerge.errors import SourceError

INDEX_NAME = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _DTYPES.items()}
"""The name of each dtype in a safetensors header."""


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Reader(Protocol):
    def keys(self) -> list[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> Tensor: ...


class WeightFile:
    """One safetensors file, mapped into memory; its header is checked when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = cast("_Reader", safe_open(path, framework="pt"))
            self.metadata: Mapping[str, str] = self._reader.metadata() or {}
            slices = {name: self._reader.get_slice(name) for name in self._reader.keys()}  # noqa: SIM118  no mapping
            shapes = {name: (tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise SourceError(_unreadable(path, error)) from None
        self.infos = {name: TensorInfo(shape, stored_dtype(path, name, kind)) for name, (shape, kind) in shapes.items()}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that is a view of the mapped file.

        Raises:
            SourceError: when the file has changed under us.
        """
        try:
            return self._reader.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise SourceError(_unreadable(self.path, error)) from None


def stored_dtype(path: Path, name: str, kind: str) -> torch.dtype:
    """Return the dtype that a header names.

    Raises:
        SourceError: for one that cannot be merged.
    """
    if kind not in _DTYPES:
        raise SourceError(
            f"{path}: tensor {name!r} is stored as {kind}, which cannot be merged; "
            f"use the unquantised checkpoint (float32, bfloat16 or float16)"
        )
    return _DTYPES[kind]


def _unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as failure:
        return f"{path}: cannot be read ({failure.strerror or failure})"
    if start.startswith(b"version https://git-lfs"):
        return f"{path}: this is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: not a whole safetensors file ({reason}); it is truncated or corrupt, so copy or download it again"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceError: when the file is missing, unreadable, or holds anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; a Hugging Face checkpoint folder has one") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON ({error}); restore the file") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(data).__name__}; restore the file")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint that can be merged.

    Raises:
        SourceError: when it is missing or invalid, or says that the weights are quantised.
    """
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise SourceError(f"{folder}: quantised weights cannot be merged; use the unquantised checkpoint")
    return config


def open_weights(folder: Path) -> dict[str, WeightFile]:
    """Open all weights of a folder: tensor name -> the file that holds it.

    Raises:
        SourceError: no weights, only pickled ones, an index that does not fit its files, or a broken file.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; give the path of a Hugging Face checkpoint folder")
    if (folder / INDEX_NAME).exists():
        return _open_indexed(folder)
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if (folder / "model.safetensors") in files:
        files = [folder / "model.safetensors"]
    if not files:
        raise SourceError(_no_weights(folder))
    if len(files) > 1:
        raise SourceError(
            f"{folder}: {len(files)} safetensors files ({files[0].name}, ...) "
            f"but no {INDEX_NAME} to say what they hold; restore it"
        )
    file = WeightFile(files[0])
    return dict.fromkeys(file.infos, file)


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if (folder / "adapter_model.safetensors").exists():
        return f"{folder}: an adapter, not a model; name its model as `model` and this folder as `adapter`"
    if pickled:
        return (
            f"{folder}: only pickled weights ({pickled[0]}), and reading pickle can run any code, "
            f"so they are refused; convert them to safetensors first"
        )
    return f"{folder}: no weights here; expected model.safetensors, or shards with {INDEX_NAME}"


def _open_indexed(folder: Path) -> dict[str, WeightFile]:
    index = folder / INDEX_NAME
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index}: expected a `weight_map` from tensor names to files; restore the file")
    opened: dict[str, WeightFile] = {}
    weights: dict[str, WeightFile] = {}
    for name, file_name in weight_map.items():
        if file_name not in opened:
            opened[file_name] = WeightFile(_shard_path(folder, index, file_name))
        if name not in opened[file_name].infos:
            raise SourceError(
                f"{index}: names tensor {name!r} in {file_name}, which does not hold it; restore both files"
            )
        weights[name] = opened[file_name]
    return weights


def _shard_path(folder: Path, index: Path, file_name: object) -> Path:
    if not isinstance(file_name, str) or not file_name.endswith(".safetensors"):
        raise SourceError(f"{index}: names the file {file_name!r}; only safetensors files are read")
    pure = PurePosixPath(file_name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file_name or "\0" in file_name:
        raise SourceError(f"{index}: names the file {file_name!r}, which lies outside of the checkpoint folder")
    path = folder / pure
    if not path.exists():
        raise SourceError(f"{index}: names the shard {file_name}, which is missing; download or copy it again")
    return path
