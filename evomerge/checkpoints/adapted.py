"""A model with a LoRA adapter on it: each tensor is computed when it is asked for, and nothing is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.adapters import Adapter, Pair
from evomerge.checkpoints.headers import HeaderCheckpoint
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.orientation import inputs_first
from evomerge.checkpoints.types import ModelSource, TensorInfo
from evomerge.errors import SourceError

_TIED_TOLERANCE = 1e-6
"""Relative; two factorisations of one update differ by rounding."""


@dataclass(frozen=True, slots=True)
class Update:
    """The low-rank update of one tensor: scale · second first, transposed where the tensor is stored so."""

    first: Tensor
    """A, float32: (rank, inputs)."""
    second: Tensor
    """B, float32: (outputs, rank)."""
    scale: float
    transposed: bool
    """Whether the tensor is stored as (inputs, outputs), as embeddings and GPT-2's `Conv1D` are."""
    of_embedding: bool

    def dense(self) -> Tensor:
        """Return the update as a matrix of the tensor's shape; the order of operations is PEFT's."""
        product = self.second @ self.first
        return (product.T if self.transposed else product) * self.scale


class AdaptedModel:
    """A model and a LoRA adapter as one source: W + s · B A, computed in float32 as PEFT's `merge_and_unload` does.

    An adapted tensor is not rounded to the type of the model's own: the merge rounds once.
    """

    def __init__(self, base: ModelSource, adapter: Adapter) -> None:
        """Find the tensors that the adapter changes, and hold its shapes against theirs.

        Raises:
            SourceError: when the adapter is for another model, or changes one of two tied tensors only.
        """
        self.base = base
        self.adapter = adapter
        self.folder: Path = base.folder
        self.config: Mapping[str, Any] = base.config
        self.layout: Layout = base.layout
        self.tied: Mapping[str, str] = base.tied
        names = {*base.names(), *base.tied}
        self.modules: dict[str, str] = {}
        """Name of each tensor with a low-rank update -> the adapter's name of its module."""
        self._pairs: dict[str, tuple[Pair, bool]] = {}
        for module, pair in adapter.pairs.items():
            name = self._find(f"{module}.weight", names)
            self.modules[name] = module
            self._pairs[name] = pair, self._is_transposed(module, pair, name)
        self.whole: dict[str, str] = {}
        """Name of each tensor that is replaced as a whole -> its key in the adapter's file."""
        for name, key in adapter.whole.items():
            found = self._find(name, names)
            self._check_shape(name, adapter.shape(key), self._base_info(found).shape)
            self.whole[found] = key
        self._check_tied()

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return self.base.names()

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor; an adapted one has at least float32.

        Raises:
            KeyError: when there is no such tensor.
        """
        info = self.base.info(name)
        if name in self._pairs:
            return TensorInfo(info.shape, torch.promote_types(info.dtype, torch.float32))
        return TensorInfo(info.shape, self.adapter.dtype(self.whole[name])) if name in self.whole else info

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the model with its adapter; it must not be changed.

        Raises:
            KeyError: when there is no such tensor.
            SourceError: when a file cannot be read any more.
        """
        own = self.adapter.tensor(self.whole[name]) if name in self.whole else self._base_tensor(name)
        update = self.update(name)
        return own if update is None else own.to(torch.promote_types(own.dtype, torch.float32)) + update.dense()

    def update(self, name: str) -> Update | None:
        """Return the low-rank update of a tensor; None: it has none (it may still be replaced as a whole)."""
        if name not in self._pairs:
            return None
        pair, transposed = self._pairs[name]
        first, second = (self.adapter.tensor(key).to(torch.float32) for key in (pair.first, pair.second))
        return Update(first, second, pair.scale, transposed, pair.is_embedding)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the model's content and of what the adapter does to it; of headers alone, `headers:...`."""
        if isinstance(self.base, HeaderCheckpoint):
            return f"{self.base.content_hash}+{self.adapter.folder.resolve()}"
        digests = self.adapter.digests()
        pairs = {
            name: [digests[pair.first], digests[pair.second], pair.scale, transposed]
            for name, (pair, transposed) in self._pairs.items()
        }
        whole = {name: digests[key] for name, key in self.whole.items()}
        document = {"base": self.base.content_hash, "lora": pairs, "whole": whole}
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    # ---- finding tensors

    def _find(self, name: str, names: Collection[str]) -> str:
        """Return the checkpoint's name of a tensor: its files may lack or add an outer part (`transformer.`)."""
        tail = name.partition(".")[2]
        if name in names:
            return name
        if tail in names:
            return tail
        found = [known for known in names if known.endswith(f".{name}")]
        if len(found) == 1:
            return found[0]
        raise SourceError(
            f"{self.adapter.folder}: the adapter changes {name!r}, which the model {self.folder} "
            f"{'has more than once' if found else 'lacks'}{self.adapter.trained_on}; give the model that it was "
            f"trained on"
        )

    def _base_info(self, name: str) -> TensorInfo:
        return self.base.info(self.tied.get(name, name))

    def _base_tensor(self, name: str) -> Tensor:
        return self.base.tensor(self.tied.get(name, name))

    def _check_shape(self, name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
        if ours != theirs:
            raise SourceError(
                f"{self.adapter.folder}: the adapter is for a tensor {name!r} of shape {ours}, but the model "
                f"{self.folder} has {theirs}{self.adapter.trained_on}; give the model that it was trained on"
            )

    def _is_transposed(self, module: str, pair: Pair, name: str) -> bool:
        """Tell whether a weight is stored as (inputs, outputs): by its shape; square ones as the model's others are."""
        shape, update = self._base_info(name).shape, (pair.outputs, pair.inputs)
        if pair.is_embedding or (shape == update[::-1] and shape != update):
            self._check_shape(f"{module}.weight", update[::-1], shape)
            return True
        self._check_shape(f"{module}.weight", update, shape)
        if pair.inputs != pair.outputs:
            return False
        known = self._stores_inputs_first
        return bool(self.adapter.settings.get("fan_in_fan_out")) if known is None else known

    @cached_property
    def _stores_inputs_first(self) -> bool | None:
        return inputs_first(self.base)

    def _check_tied(self) -> None:
        """Refuse an update of one of two tied tensors: the other is the same in the checkpoint, and was not trained."""
        for head, embedding in self.tied.items():
            if not {head, embedding} & (self._pairs.keys() | self.whole.keys()) or isinstance(
                self.base, HeaderCheckpoint
            ):
                continue
            one, two = self.tensor(head), self.tensor(embedding)
            if not torch.allclose(one, two.to(one.dtype), rtol=_TIED_TOLERANCE, atol=_TIED_TOLERANCE):
                raise SourceError(
                    f"{self.adapter.folder}: the adapter makes {head!r} and {embedding!r} differ, which are one tensor "
                    f"in the model {self.folder}; untie them in the model first (tie_word_embeddings: false, with both "
                    f"tensors stored), or leave both out of the adapter"
                )
