"""Merged tensors into the memory of a resident model, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import InfeasibleError, SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.conversion import Conversion
from evomerge.merging import MergePlan, materialise

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Loading:
    """Where the tensors of one kind of merge go in a resident model; worked out once for all candidates of a search."""

    def __init__(self, model: PreTrainedModel, merge: MergePlan, config: EngineConfig) -> None:
        """Find the place of every tensor.

        Args:
            model: has memory for its weights; it is written into.
            merge: any merge with the same tensors, by name and shape.
            config: the dtype that errors name.

        Raises:
            SourceError: when a merged tensor has no place in the model.
        """
        self._model, self._config = model, config
        self._infos = merge.infos
        self._conversion = Conversion(model, self._infos)
        check_placed(self._conversion, model, merge)
        self._targets = dict(model.state_dict())  # tied names share storage
        self._parts: dict[str, Tensor] = {}
        for group in self._conversion.groups:
            parts = self._conversion.parts(group, self._targets[group.place]) or ()
            self._parts |= dict(zip(group.names, parts, strict=False))

    def fits(self, merge: MergePlan) -> bool:
        """Return whether a merge has the tensors that this was worked out for."""
        return merge.infos == self._infos

    def write(self, merge: MergePlan, device: str) -> None:
        """Materialise a merge into the model.

        Raises:
            InfeasibleError: when a weight is not finite, as merged or in the model's dtype.
            SourceError: when a merged tensor has no place of its shape, or a place gets no tensor.
        """
        filled: set[tuple[int, tuple[int, ...]]] = set()
        with torch.no_grad():
            merged = materialise(merge, device=device)
            for name, place, tensor in self._conversion.converted(merged, apart=self._parts):
                whole = self._targets.get(place)
                target = self._parts.get(name, whole)
                if whole is None or target is None or target.shape != tensor.shape:
                    raise no_place(name, self._model, merge)
                target.copy_(tensor)
                if target.dtype != tensor.dtype and not is_finite(target):
                    raise not_finite(name, self._config)
                filled.add(_key(whole))
        left = [name for name, target in self._targets.items() if _key(target) not in filled]
        if left:
            raise no_tensor(left, self._model, merge)


def check_placed(conversion: Conversion, model: PreTrainedModel, merge: MergePlan) -> None:
    """Refuse a merge with a parameter that the model has no place for.

    Raises:
        SourceError: naming the first such tensor.
    """
    infos = merge.infos
    for name in conversion.unplaced:
        if not is_buffer(name, infos[name]):  # old checkpoints store rotary frequencies, which the model computes
            raise no_place(name, model, merge)


def no_place(name: str, model: PreTrainedModel, merge: MergePlan) -> SourceError:
    """Build the error about a merged tensor that the model has no place for."""
    return SourceError(
        f"the merged tensor {name!r} has no place of its shape in transformers' {type(model).__name__}, as which this "
        f"{_stored_as(merge)} would be scored; give checkpoints of a causal language model"
    )


def no_tensor(names: Collection[str], model: PreTrainedModel, merge: MergePlan) -> SourceError:
    """Build the error about places of the model that no merged tensor is for."""
    return SourceError(
        f"the merge gives no tensor {next(iter(names))!r}, which transformers' {type(model).__name__}, as which this "
        f"{_stored_as(merge)} would be scored, needs ({len(names)} such); give checkpoints of a causal language model"
    )


def _stored_as(merge: MergePlan) -> str:
    names = merge.sources.models[merge.sources.reference].config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "checkpoint"


def not_finite(name: str, config: EngineConfig) -> InfeasibleError:
    """Build the error about a merged tensor that the engine's dtype cannot hold."""
    return InfeasibleError(f"the merged tensor {name!r} is not finite in {config.dtype}")


def _key(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
