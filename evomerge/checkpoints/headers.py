"""Checkpoints of which only configuration and headers are read: local ones, and on the hub by range request.

Enough to plan a merge and to hold sources against each other. Of a model on the hub, small JSON files (settings,
tokenizer, index) and its card are downloaded, and of each weights file the header alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.checkpoints.adapters import WEIGHTS_NAME, Adapter
from evomerge.checkpoints.files import WeightFile, open_weights, read_config, stored_dtype
from evomerge.checkpoints.reader import Checkpoint
from evomerge.checkpoints.resolve import Kind, find_local, on_hub
from evomerge.checkpoints.types import TensorInfo
from evomerge.errors import SourceError

_SMALL = ("*.json", "*.jinja", "README.md")
_ELSEWHERE = ("*/*",)


class HeaderFile(WeightFile):
    """A safetensors file that lies elsewhere, of which the header is known."""

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo]) -> None:
        self.path = path
        self.metadata = {}
        self.infos = dict(infos)

    def tensor(self, name: str) -> Tensor:
        """Refuse: there is no weight here.

        Raises:
            SourceError: always.
        """
        raise SourceError(f"{self.path}: of tensor {name!r} only the header was read")


class HeaderCheckpoint(Checkpoint):
    """A checkpoint whose weights are not looked at: a head that is said to be tied counts as tied."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], weights: Mapping[str, WeightFile], *, remote: bool = False
    ) -> None:
        """Place every tensor.

        Args:
            folder: holds configuration and tokenizer.
            config: `config.json`.
            weights: the file of each tensor.
            remote: whether the weights are not on this machine.

        Raises:
            SourceError: when layers are missing.
        """
        super().__init__(folder, config, weights)
        self.remote = remote

    def _equal(self, one: str, other: str) -> bool:
        del one, other
        return True

    @cached_property
    def content_hash(self) -> str:
        """`headers:` and the SHA-256 (hex) of place, configuration and headers: it identifies no weights."""
        infos = {name: [list(self.info(name).shape), str(self.info(name).dtype)] for name in self.names()}
        document = [str(self.folder.resolve()), dict(self.config), infos]
        return f"headers:{hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()}"


def open_headers(model: str, revision: str | None, base_dir: Path) -> HeaderCheckpoint:
    """Open a model without its weights; a model on the hub is not downloaded.

    Args:
        model: `zoo:NAME`, a local folder, or a hub id.
        revision: branch, tag or commit of a hub id; None: the default branch.
        base_dir: where relative folders start.

    Raises:
        SourceError: as for a model that is opened whole.
    """
    folder, remote = find_local("model", model, revision, base_dir), False
    weights: Mapping[str, WeightFile]
    if folder is None:
        folder = _small_files("model", model, revision)
        remote = not _has_weights(folder)
    weights = _remote_weights(model, folder) if remote else open_weights(folder)
    return HeaderCheckpoint(folder, read_config(folder), weights, remote=remote)


def open_adapter_headers(adapter: str, revision: str | None, base_dir: Path) -> Adapter:
    """Open an adapter; of one on the hub, its settings are downloaded and the header of its factors.

    Raises:
        SourceError: as for an adapter that is opened whole.
    """
    folder = find_local("adapter", adapter, revision, base_dir)
    if folder is not None:
        return Adapter(folder)
    folder = _small_files("adapter", adapter, revision)
    if (folder / WEIGHTS_NAME).is_file():
        return Adapter(folder)
    return Adapter(folder, _remote_file("adapter", adapter, folder, WEIGHTS_NAME))


def _small_files(kind: Kind, repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    def ask() -> str:
        with _no_progress():
            return snapshot_download(
                repo_id, revision=revision, allow_patterns=list(_SMALL), ignore_patterns=list(_ELSEWHERE)
            )

    return Path(on_hub(kind, repo_id, revision, ask))


@contextmanager
def _no_progress() -> Iterator[None]:
    """Keep the hub's client from drawing bars for files of a few kilobytes."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _has_weights(folder: Path) -> bool:
    """Tell whether a snapshot was downloaded whole before."""
    try:
        open_weights(folder)
    except SourceError:
        return False
    return True


def _remote_weights(repo_id: str, folder: Path) -> dict[str, WeightFile]:
    from huggingface_hub import HfApi, errors

    def ask() -> Any:
        try:
            with _no_progress():
                return HfApi().get_safetensors_metadata(repo_id, revision=folder.name)
        except errors.NotASafetensorsRepoError:
            return None

    found = on_hub("model", repo_id, None, ask)
    if found is None:
        raise SourceError(
            f"model {repo_id!r}: no safetensors weights on the hub (reading pickled ones can run any code, so they are "
            f"refused); use a revision that has model.safetensors"
        )
    files = {name: _header_file(folder / name, file) for name, file in found.files_metadata.items()}
    for name, file in found.weight_map.items():
        if name not in files[file].infos:
            raise SourceError(f"model {repo_id!r}: its index names tensor {name!r} in {file}, which does not hold it")
    return {name: files[file] for name, file in found.weight_map.items()}


def _remote_file(kind: Kind, repo_id: str, folder: Path, name: str) -> HeaderFile:
    from huggingface_hub import HfApi

    found = on_hub(
        kind, repo_id, None, lambda: HfApi().parse_safetensors_file_metadata(repo_id, name, revision=folder.name)
    )
    return _header_file(folder / name, found)


def _header_file(path: Path, metadata: Any) -> HeaderFile:
    return HeaderFile(
        path,
        {
            name: TensorInfo(tuple(info.shape), stored_dtype(path, name, info.dtype))
            for name, info in metadata.tensors.items()
        },
    )
