"""What a readable model is: named tensors with a layout, whatever they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from evomerge.checkpoints.layout import Layout


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor, known before a byte of it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.num_elements * self.dtype.itemsize


class TensorSource(Protocol):
    """Named tensors that can be read one at a time."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted: the canonical order."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype without reading the tensor.

        Raises:
            KeyError: when there is no such tensor.
        """
        ...

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU in its stored dtype; it may be mapped from a file, so never change it.

        Raises:
            KeyError: when there is no such tensor.
        """
        ...


class ModelSource(TensorSource, Protocol):
    """A whole model: its tensors, what they are for, and the files that go beside them."""

    @property
    def folder(self) -> Path:
        """The folder that holds its tokenizer and generation settings."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed `config.json`."""
        ...

    @property
    def layout(self) -> Layout:
        """Which tensor belongs to which layer and module."""
        ...

    @property
    def tied(self) -> Mapping[str, str]:
        """Tensors that are not stored because they equal another one: name -> name of that one."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what the model is, independent of where it lies and of how it is sharded."""
        ...
