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
    from collections.abc import Callable

    from evomerge.merging.sources import Sources
    from evomerge.operators.kernels.context import Tensors

Inputs = tuple[tuple[str, str], ...]

_KEPT_BYTES = 1 << 30
"""Size of what kernels have kept (decompositions, products): about a model of 0.5 B parameters."""
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
        self._kept: OrderedDict[tuple[str, Inputs], Tensors] = OrderedDict()
        self._kept_bytes = 0
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

    def keeper(self, inputs: Inputs) -> Callable[[str, Callable[[], Tensors]], Tensors]:
        """Return the function with which a kernel keeps what depends on its inputs alone (`Context.kept`).

        What was used least recently is forgotten beyond 1 GiB; what is larger by itself is made every time.

        Args:
            inputs: (alias, name of the tensor) of every tensor, the base last.
        """

        def kept(what: str, make: Callable[[], Tensors]) -> Tensors:
            key = (what, inputs)
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            made = make()
            size = _num_bytes(made)
            if size <= _KEPT_BYTES:
                self._kept[key] = made
                self._kept_bytes += size
                while self._kept_bytes > _KEPT_BYTES:
                    self._kept_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
            return made

        return kept

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
            yield self._sources.working(alias, name).float() - self._sources.working(base, name).float()


def _num_bytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
