"""The flat index: all merged weights of a model in one row, and its parts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from evomerge.checkpoints import ModelSource, parameter_names
from evomerge.recipe import CHROMOSOMES, Chromosome, Group


@dataclass(frozen=True, slots=True)
class FlatTensor:
    """Where a tensor lies in the flat index."""

    name: str
    group: Group
    start: int
    """Flat index of its first weight."""
    size: int
    """Number of weights, in row-major order."""


FlatParts = dict[Chromosome, tuple[FlatTensor, ...]]
"""Chromosome -> its tensors, in order; the flat index of a chromosome counts their weights alone."""


def flat_index(model: ModelSource) -> tuple[FlatTensor, ...]:
    """Return the tensors that are merged, in canonical order: sorted by name, no buffers, tied ones once."""
    found = []
    start = 0
    for name in parameter_names(model):
        size = model.info(name).num_elements
        found.append(FlatTensor(name, group_of(model, name), start, size))
        start += size
    return tuple(found)


def group_of(model: ModelSource, name: str) -> Group:
    """Return the module group of a tensor, as blends see it: outside of the layers, the head or the embeddings."""
    place = model.layout.place(name)
    if place.layer is None:
        return "head" if place.module == "head" else "embeddings"
    return place.module if place.module in ("attention", "mlp") else "other"


def flat_parts(tensors: Collection[FlatTensor], chromosomes: Collection[Chromosome]) -> FlatParts:
    """Divide a flat index.

    Args:
        tensors: from `flat_index`.
        chromosomes: module groups; `rest`, the groups not named, is added where any weights are left.

    Returns:
        In the order of the groups, `rest` last.
    """
    parts: dict[Chromosome, list[FlatTensor]] = {name: [] for name in CHROMOSOMES if name in chromosomes}
    for tensor in tensors:
        parts.setdefault(tensor.group if tensor.group in chromosomes else "rest", []).append(tensor)
    return {name: tuple(each) for name, each in parts.items()}


def part_size(tensors: Collection[FlatTensor]) -> int:
    """Return the number of weights of a chromosome."""
    return sum(tensor.size for tensor in tensors)
