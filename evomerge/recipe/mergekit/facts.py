"""What the translation has to know of a model: its depth, the names of its tensors, its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge.recipe.resolution import Module
from evomerge.recipe.schema import SourceConfig

Part = Literal["embeddings", "head"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's tensors by name, buffers not among them."""

    stack: str
    """What the names of the layers' tensors begin with, for instance `model.layers`."""
    layers: tuple[Mapping[str, Module], ...]
    """Of each layer, the names of its tensors within it and the module group of each."""
    outside: Mapping[str, Part]
    """The other tensors, and which part each belongs to."""
    dtype: str
    """What most of the weights are stored as, for instance `bfloat16`."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def names_in(self, part: Part) -> tuple[str, ...]:
        """Return the names of a part's tensors."""
        return tuple(name for name, found in self.outside.items() if found == part)


Look = Callable[[SourceConfig], ModelFacts]
"""Reads the headers of a source."""
