"""State dicts as rows of one matrix, and rows as state dicts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.documents import did_you_mean
from evomerge.errors import SourceError

StateDict = Mapping[str, Tensor]
"""What `torch.nn.Module.state_dict()` returns: name -> tensor."""
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the flat vector, and what it is."""

    start: int
    stop: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    is_plain: bool
    """Whether it is float32 on the CPU."""


class StateDicts:
    """Models of one shape as a matrix of weights.

    Floating-point tensors make up the flat vector, in the sorted order of their names; tensors that share memory in
    every source (tied weights) count once. All others, such as counters, are copied from the first source.

    Args:
        sources: alias -> state dict, at least two, with equal names and shapes; the tensors are copied.

    Raises:
        SourceError: for fewer than two sources, anything but dense tensors, names, shapes or kinds that differ, no
            weights at all, or weights that are not finite.

    Example:
        >>> import torch
        >>> ones, twos = {"weight": torch.ones(2, 3)}, {"weight": torch.full((2, 3), 2.0)}
        >>> sources = StateDicts({"ones": ones, "twos": twos})
        >>> sources.state_dict(sources.vectors.mean(axis=0))
        {'weight': tensor([[1.5000, 1.5000, 1.5000],
                [1.5000, 1.5000, 1.5000]])}
    """

    def __init__(self, sources: Mapping[str, StateDict]) -> None:
        _check(sources)
        first = next(iter(sources.values()))
        self.aliases = tuple(sources)
        self._names = tuple(first)
        self._copied = {name: tensor.detach().clone() for name, tensor in first.items() if not _is_weight(tensor)}
        self._owner = _owners(sources)
        """Name of a weight -> name under which it counts: another one only for tied weights."""
        self._places: dict[str, _Place] = {}
        self.num_weights = 0
        for name in sorted(set(self._owner.values())):
            tensor = first[name]
            stop = self.num_weights + tensor.numel()
            is_plain = tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            self._places[name] = _Place(self.num_weights, stop, tensor.shape, tensor.dtype, tensor.device, is_plain)
            self.num_weights = stop
        self._converted = [name for name, place in self._places.items() if not place.is_plain]
        self._sizes = [place.stop - place.start for place in self._places.values()]
        self._live: tuple[Weights, dict[str, Tensor]] | None = None
        self.vectors = self._matrix(sources)
        """Shape (sources, weights), float32."""

    def _matrix(self, sources: Mapping[str, StateDict]) -> Weights:
        if self.num_weights == 0:
            raise SourceError(f"sources.{self.aliases[0]}: it has no floating-point weights; there is nothing to merge")
        matrix = np.empty((len(sources), self.num_weights), dtype=np.float32)
        for row, (alias, source) in zip(matrix, sources.items(), strict=True):
            for name, place in self._places.items():
                row[place.start : place.stop] = source[name].detach().to("cpu", torch.float32).reshape(-1).numpy()
                if not np.isfinite(row[place.start : place.stop]).all():
                    raise SourceError(f"sources.{alias}: tensor {name!r} has NaN or infinite values; mend the model")
        matrix.setflags(write=False)
        return matrix

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Name -> start and stop in the flat vector, in order; tied weights under their first name."""
        return {name: (place.start, place.stop) for name, place in self._places.items()}

    def content_hash(self, alias: str) -> str:
        """Return the SHA-256 (hex) of a source's names, shapes and weights."""
        digest = hashlib.sha256()
        for name, place in self._places.items():
            digest.update(f"{name}\x1f{tuple(place.shape)}\x1f".encode())
        digest.update(self.vectors[self.aliases.index(alias)].astype("<f4", copy=False).data)
        return digest.hexdigest()

    def state_dict(self, weights: Weights) -> dict[str, Tensor]:
        """Return weights as a state dict: names, shapes, types and devices of the first source.

        Args:
            weights: shape (weights,), float32; float32 tensors on the CPU share its memory unless it is read-only.
        """
        vector = torch.from_numpy(weights if weights.flags.writeable else weights.copy())
        found: dict[str, Tensor] = {}
        for (name, place), part in zip(self._places.items(), vector.split_with_sizes(self._sizes), strict=True):
            tensor = part.view(place.shape)
            found[name] = tensor if place.is_plain else tensor.to(place.device, place.dtype)
        return {
            name: found[self._owner[name]] if name in self._owner else self._copied[name].clone()
            for name in self._names
        }

    def overwrite(self, weights: Weights) -> dict[str, Tensor]:
        """Return weights as a state dict whose tensors the next call overwrites: one model's memory for all of them.

        Args:
            weights: shape (weights,), float32; copied.
        """
        if self._live is None:
            vector = np.empty(self.num_weights, dtype=np.float32)
            self._live = (vector, self.state_dict(vector))
        vector, live = self._live
        np.copyto(vector, weights)
        for name in self._converted:
            place = self._places[name]
            live[name].copy_(torch.from_numpy(vector[place.start : place.stop]).view(place.shape))
        for name, tensor in self._copied.items():
            live[name].copy_(tensor)
        return dict(live)


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _check(sources: Any) -> None:
    if not isinstance(sources, Mapping) or len(sources) < 2:
        count = len(sources) if isinstance(sources, Mapping) else 0
        raise SourceError(f"sources: a merge needs at least two, by alias, got {count}; add another state dict")
    reference: tuple[str, StateDict] | None = None
    for alias, source in sources.items():
        if not isinstance(alias, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", alias):
            raise SourceError(f"sources: the alias {alias!r} may hold letters, digits, '.', '_' and '-' alone")
        _check_tensors(alias, source)
        if reference is None:
            reference = (alias, source)
        else:
            _check_like(alias, source, *reference)


def _check_tensors(alias: str, source: Any) -> None:
    if not isinstance(source, Mapping):
        kind = type(source).__name__
        raise SourceError(f"sources.{alias}: expected a state dict, got a {kind}; pass `model.state_dict()`")
    for name, tensor in source.items():
        if not isinstance(tensor, Tensor):
            text = f"expected a tensor, got {type(tensor).__name__}; pass `model.state_dict()` alone"
            raise SourceError(f"sources.{alias}: {name!r}: {text}")
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_meta or tensor.is_quantized:
            raise SourceError(
                f"sources.{alias}: tensor {name!r} is not a dense tensor of real numbers; convert it first"
            )


def _check_like(alias: str, source: StateDict, first_alias: str, first: StateDict) -> None:
    for name, tensor in first.items():
        if name not in source:
            raise SourceError(
                f"sources.{alias}: it lacks the tensor {name!r} of {first_alias!r}; merge models of one shape"
            )
        other = source[name]
        if other.shape != tensor.shape:
            shapes = f"{tuple(other.shape)} here and {tuple(tensor.shape)} in {first_alias!r}"
            raise SourceError(f"sources.{alias}: tensor {name!r} has shape {shapes}; merge models of one shape")
        if _is_weight(other) != _is_weight(tensor):
            kinds = f"{other.dtype} here and {tensor.dtype} in {first_alias!r}"
            raise SourceError(f"sources.{alias}: tensor {name!r} is {kinds}; convert one of them")
    for name in source:
        if name not in first:
            hint = did_you_mean(name, first)
            raise SourceError(f"sources.{alias}: {first_alias!r} has no tensor {name!r}{hint}")


def _owners(sources: Mapping[str, StateDict]) -> dict[str, str]:
    """Return name -> first name (in sorted order) of the same memory, where that holds in every source."""
    names = sorted(name for name, tensor in next(iter(sources.values())).items() if _is_weight(tensor))
    keys = {name: tuple(_memory(source[name]) for source in sources.values()) for name in names}
    first: dict[tuple[object, ...], str] = {}
    return {name: first.setdefault(keys[name], name) for name in names}


def _memory(tensor: Tensor) -> tuple[object, ...]:
    # An empty tensor has no memory to share: it stands for itself.
    place = tensor.data_ptr() if tensor.numel() else id(tensor)
    return (place, tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
