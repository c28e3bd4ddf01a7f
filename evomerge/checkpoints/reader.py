"""A Hugging Face checkpoint folder, read lazily."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.digests import content_hash, file_digests
from evomerge.checkpoints.files import WeightFile, open_weights, read_config
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.types import TensorInfo, TensorSource
from evomerge.errors import SourceError

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


class Checkpoint:
    """A model in a folder: `config.json` and safetensors, mapped into memory and read tensor by tensor.

    A head that is tied to the input embedding is not among the tensors, whether the file repeats it or not.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], weights: Mapping[str, WeightFile]) -> None:
        self.folder = folder
        self.config = MappingProxyType(dict(config))
        infos = {name: weights[name].infos[name] for name in sorted(weights)}
        self.layout = Layout(infos, config, str(folder))
        self._weights = {name: weights[name] for name in infos}
        self.tied: Mapping[str, str] = MappingProxyType(self._find_tied())
        for head in self.tied:
            self._weights.pop(head, None)
        self._infos = {name: infos[name] for name in self._weights}
        self._names = tuple(self._weights)

    @property
    def num_layers(self) -> int:
        """Number of layers of the language model."""
        return self.layout.num_layers

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return self._names

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor.

        Raises:
            KeyError: when there is no such tensor.
        """
        return self._infos[name]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as a view of its mapped file; it must not be changed.

        Raises:
            KeyError: when there is no such tensor.
            SourceError: when the file cannot be read any more.
        """
        return self._weights[name].tensor(name)

    def _find_tied(self) -> dict[str, str]:
        text, embedding = self.config.get("text_config"), self.layout.embedding
        sections = [self.config, text] if isinstance(text, Mapping) else [self.config]
        if embedding is None or not any(section.get("tie_word_embeddings") is True for section in sections):
            return {}
        head = next((name for name in _HEADS if name in self._weights), _HEADS[0])
        # transformers does not tie two stored tensors that differ, whatever the configuration says.
        return {} if head in self._weights and not self._equal(head, embedding) else {head: embedding}

    def _equal(self, one: str, other: str) -> bool:
        return torch.equal(self.tensor(one), self.tensor(other))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the configuration and of every tensor; independent of sharding and place."""
        files = {file.path: file for file in self._weights.values()}
        digests = {path: file_digests(file) for path, file in files.items()}
        return content_hash(
            self.config, self._infos, {name: digests[file.path][name] for name, file in self._weights.items()}
        )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder; headers are read and checked, weights are not read yet.

    Args:
        folder: a folder with `config.json` and `model.safetensors` (or shards with their index).

    Raises:
        SourceError: a missing folder, no or only pickled weights, a truncated file, an index that does not
            fit its shards, a missing or invalid `config.json`, quantised weights, or missing layers.
    """
    weights = open_weights(folder)
    return Checkpoint(folder, read_config(folder), weights)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor has neither NaN nor infinity."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # NaN and infinity come through a sum, the quickest pass of all; finite values may still overflow in it.
    if math.isfinite(tensor.sum()):
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(source: TensorSource, label: str, names: Iterable[str] | None = None) -> None:
    """Refuse a model with NaN or infinite weights, reading every tensor once.

    Args:
        source: the model.
        label: what the error calls it, for instance its alias in the recipe.
        names: the tensors to look at; None: all.

    Raises:
        SourceError: naming the first such tensor.
    """
    for name in source.names() if names is None else names:
        if not is_finite(source.tensor(name)):
            raise SourceError(not_finite_text(label, name))


def not_finite_text(label: str, name: str) -> str:
    """Return the sentence about a source's tensor that is not finite."""
    return f"source {label!r}: tensor {name!r} has NaN or infinite values; use a sound checkpoint of this model"
