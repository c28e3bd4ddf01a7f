"""Gram matrices of opened sources, block by block of the flat index."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.flat import flat_index, flat_parts, part_size
from evomerge.merging.progress import MergeProgress
from evomerge.merging.sources import Sources
from evomerge.operators.block_grams import BlockGrams
from evomerge.recipe import Chromosome, Group

_SPAN = 1 << 20
"""Weights of each source that are in memory as float64 at a time."""

ChromosomeGrams = dict[Chromosome, tuple[int, NDArray[np.float64]]]
"""Chromosome -> its number of weights, and what `BlockGrams.result` says of it."""


def block_grams(
    sources: Sources,
    aliases: Sequence[str],
    chromosomes: Collection[Group] = (),
    *,
    progress: MergeProgress | None = None,
) -> ChromosomeGrams:
    """Read every weight of the sources once and return their Gram matrices, in float64.

    Args:
        sources: opened, of one depth.
        aliases: the sources in the order of rows and columns.
        chromosomes: module groups that are parts of their own; all else is `rest`. Empty: all is `rest`.
        progress: hears how it goes on.

    Returns:
        In the order of the groups, `rest` last.

    Raises:
        SourceError: when a source has NaN or infinite values, or cannot be read.
    """
    parts = flat_parts(flat_index(sources.models[sources.reference]), chromosomes)
    total = sum(part_size(tensors) for tensors in parts.values()) * len(aliases)
    if progress is not None:
        progress.start("inner products of the sources", 4 * total)
    found: ChromosomeGrams = {}
    try:
        for name, tensors in parts.items():
            sums = BlockGrams(len(aliases), part_size(tensors))
            for tensor in tensors:
                vectors = [sources.working(alias, tensor.name).reshape(-1) for alias in aliases]
                for start in range(0, tensor.size, _SPAN):
                    sums.add([vector[start : start + _SPAN].float().cpu().numpy() for vector in vectors])
                if progress is not None:
                    progress.advance(4 * tensor.size * len(aliases))
            found[name] = (part_size(tensors), sums.result())
    finally:
        if progress is not None:
            progress.finish()
    return found
