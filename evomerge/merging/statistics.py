"""What a blend needs to know of whole models, computed once per set of sources and then kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.checkpoints import parameter_names
from evomerge.operators.kernels.selection import (
    LOWER_BINS,
    UPPER_BINS,
    boundary_bin,
    kept_count,
    magnitude_histogram,
    pattern_value,
    refined_histogram,
)

if TYPE_CHECKING:
    from evomerge.merging.sources import Sources

_KEPT_BINS = 64
"""Refined histograms kept (512 KiB each): neighbouring densities of a search share theirs."""


class Statistics:
    """Magnitude histograms of whole task vectors, from which the exact threshold of any density is read.

    A first pass over the model makes the histogram of the upper 16 bits, once a source; a second one refines
    the bin in which the threshold lies, once a bin. Tied tensors count once, buffers do not.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._upper: dict[tuple[str, str], Tensor] = {}
        self._refined: OrderedDict[tuple[str, str, int], Tensor] = OrderedDict()

    def threshold(self, alias: str, base: str, density: float) -> float:
        """Return the magnitude from which an entry is in the top `density` of the model's whole task vector.

        Args:
            alias: the source.
            base: what its task vector is taken from.
            density: share kept, in (0, 1].

        Returns:
            The exact k-th largest |τ|, k = int(density · number of entries), at least 1.
        """
        counts = self._histogram(alias, base)
        upper, rank = boundary_bin(counts, kept_count(int(counts.sum()), density))
        lower, _ = boundary_bin(self._refinement(alias, base, upper), rank)
        return pattern_value(upper, lower)

    def _histogram(self, alias: str, base: str) -> Tensor:
        key = (alias, base)
        if key not in self._upper:
            counts = torch.zeros(UPPER_BINS, dtype=torch.int64)
            for delta in self._task_vector(alias, base):
                counts += magnitude_histogram(delta).cpu()
            self._upper[key] = counts
        return self._upper[key]

    def _refinement(self, alias: str, base: str, upper: int) -> Tensor:
        key = (alias, base, upper)
        if key not in self._refined:
            counts = torch.zeros(LOWER_BINS, dtype=torch.int64)
            for delta in self._task_vector(alias, base):
                counts += refined_histogram(delta, upper).cpu()
            self._refined[key] = counts
            if len(self._refined) > _KEPT_BINS:
                self._refined.popitem(last=False)
        self._refined.move_to_end(key)
        return self._refined[key]

    def _task_vector(self, alias: str, base: str) -> Iterator[Tensor]:
        for name in parameter_names(self._sources.models[base]):
            # The same subtraction in the same precision as in a kernel: a threshold is compared for equality.
            yield self._sources.working(alias, name) - self._sources.working(base, name)
