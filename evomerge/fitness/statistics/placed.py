"""A model of transformers with the weights of a source, and where in it each of the source's tensors is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.checkpoints import ModelSource, parameter_names
from evomerge.errors import SourceError
from evomerge.fitness.architecture import build_model
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.conversion import Conversion, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlacedModel:
    """A source's model in evaluation mode and without gradients.

    What the model holds as one tensor the checkpoint may hold as several, such as experts.
    """

    def __init__(self, source: ModelSource, device: torch.device, dtype: str) -> None:
        """Build it.

        Raises:
            SourceError: when transformers cannot, or divides its weights otherwise than by stacking them.
        """
        self.model: PreTrainedModel = build_model(source.folder, EngineConfig.model_validate({"dtype": dtype}), device)
        self._source = source
        self._conversion = Conversion(self.model, source.names())
        self._state: dict[str, Tensor] = self.model.state_dict()
        self._groups: dict[str, Group] = {group.place: group for group in self._conversion.groups}
        place_of = {name: group.place for group in self._conversion.groups for name in group.names}
        for name in parameter_names(source):
            if name not in place_of:
                raise self._otherwise(name)
        self._fill()

    def places(self, names: Iterable[str]) -> list[str]:
        """Return what of the model holds some tensors of the source, each once."""
        wanted = set(names)
        return [place for place, group in self._groups.items() if not wanted.isdisjoint(group.names)]

    def name(self, place: str) -> str:
        """Return the tensor of the source that a place holds as it is; of several, the first."""
        return self._groups[place].names[0]

    def divided(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what there is of places, which has their shapes, by the source's own names."""
        return {name: part for place, whole in found.items() for name, part in self._parts(place, whole).items()}

    def _fill(self) -> None:
        filled = set()
        for place in self.places(self._source.names()):
            filled.add(self._state[place].data_ptr())
            for name, part in self._parts(place, self._state[place]).items():
                if part.shape != self._source.info(name).shape:
                    raise self._otherwise(name)
                part.copy_(self._source.tensor(name))
        for name, parameter in self.model.named_parameters():
            if parameter.data_ptr() not in filled:
                raise self._otherwise(name)

    def _parts(self, place: str, whole: Tensor) -> dict[str, Tensor]:
        group = self._groups[place]
        parts = self._conversion.parts(group, whole)
        if parts is None:
            raise self._otherwise(group.names[0])
        return dict(zip(group.names, parts, strict=True))

    def _otherwise(self, name: str) -> SourceError:
        return SourceError(
            f"{self._source.folder}: the tensor {name!r} is not in both the checkpoint and transformers' model of it; "
            "this architecture divides or names its weights differently there and cannot be measured yet"
        )
