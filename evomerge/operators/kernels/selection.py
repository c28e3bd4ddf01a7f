"""Exact selection of the largest magnitudes without sorting.

One tensor: a sample tells between which two values the k-th largest magnitude almost surely lies. One pass counts
what is larger, and collects the few entries between, among which the rank is then exact; where the sample misled, the
counts show it.

A whole model, or a sample that misled: the bit pattern of a non-negative float32 orders like its value, so a radix
select needs two passes: a histogram of the upper 16 bits finds the bin that holds the k-th largest magnitude, a
histogram of the lower 16 bits inside that bin finds the value itself. Histograms of parts add up, so a whole model is
selected from while it streams by.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.operators.kernels import cpu
from evomerge.operators.kernels.inputs import RUN, Flat, TaskVector, Vector, spans
from evomerge.operators.kernels.scratch import Scratch

UPPER_BINS = 1 << 15
"""Bins of `magnitude_histogram`: 16 upper bits without the sign."""
LOWER_BINS = 1 << 16
"""Bins of `refined_histogram`."""
_MAGNITUDE = 0x7FFF_FFFF
_SMALL = 1 << 18
"""Up to so many elements are selected from at once."""
_SAMPLE = 1 << 16
"""With it about 2 % of the entries lie in the bracket."""


def kept_count(numel: int, density: float) -> int:
    """Return how many of `numel` entries are kept: int(density · numel), at least 1 if there is one."""
    return min(numel, max(1, int(density * numel)))


def magnitude_histogram(tensor: Tensor) -> Tensor:
    """Count the magnitudes by the upper 16 bits of their float32 pattern.

    Args:
        tensor: float32, any shape.

    Returns:
        int64 of shape (32768,) on the tensor's device; a higher bin holds larger magnitudes.
    """
    counts = torch.zeros(UPPER_BINS, dtype=torch.int64, device=tensor.device)
    bits = _bits(tensor)
    for start, stop in spans(bits.numel(), bits.device):
        counts += torch.bincount((bits[start:stop] & _MAGNITUDE) >> 16, minlength=UPPER_BINS)
    return counts


def refined_histogram(tensor: Tensor, upper: int) -> Tensor:
    """Count the magnitudes in one bin of `magnitude_histogram` by the lower 16 bits of their pattern.

    Returns:
        int64 of shape (65536,) on the tensor's device.
    """
    counts = torch.zeros(LOWER_BINS, dtype=torch.int64, device=tensor.device)
    bits = _bits(tensor)
    for start, stop in spans(bits.numel(), bits.device):
        chunk = bits[start:stop] & _MAGNITUDE
        counts += torch.bincount(chunk[(chunk >> 16) == upper] & 0xFFFF, minlength=LOWER_BINS)
    return counts


def boundary_bin(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th largest entry, and that entry's rank inside it (1: the largest).

    Raises:
        ValueError: when there are fewer than k entries, or k is not positive.
    """
    from_top = counts.flip(0).cumsum(0)
    total = int(from_top[-1])
    if not 1 <= k <= total:
        raise ValueError(f"k must be a rank from 1 to {total}, the number of entries, got {k}")
    place = int(torch.searchsorted(from_top, k))
    above = int(from_top[place - 1]) if place else 0
    return counts.numel() - 1 - place, k - above


def pattern_value(upper: int, lower: int) -> float:
    """Return the magnitude whose float32 pattern has these upper and lower 16 bits."""
    value: float = struct.unpack("<f", struct.pack("<I", upper << 16 | lower))[0]
    return value


def kth_largest_magnitude(values: Tensor | Vector, k: int) -> float:
    """Return the k-th largest |x| exactly.

    Args:
        values: a float32 tensor of any shape, or a vector that is read in spans.
        k: rank from 1 (the largest) to the number of elements.

    Raises:
        ValueError: when there are fewer than k entries, or k is not positive.
    """
    vector = Flat(values) if isinstance(values, Tensor) else values
    if not 1 <= k <= vector.numel():
        raise ValueError(f"k must be a rank from 1 to {vector.numel()}, the number of entries, got {k}")
    if vector.numel() <= _SMALL:
        return _ranked(vector[:].abs(), k)
    if vector.device.type == "cpu":
        bracket = Bracket(vector, k)
        tuned, origin = (vector, None) if isinstance(vector, Flat) else (vector.tuned, vector.base)
        _count({0: bracket}, {0: tuned}, origin)
        if (found := bracket.kth_largest()) is not None:
            return found
    parts = list(spans(vector.numel(), vector.device))
    return _by_histograms(lambda: (vector[start:stop] for start, stop in parts), k)


def task_thresholds(tuned: Mapping[int, Flat], origin: Flat, densities: Mapping[int, float]) -> dict[int, float]:
    """Return for each task vector the magnitude from which an entry is among its top `density`.

    Args:
        tuned: index of a source to its vector.
        origin: the base, with which they are read together.
        densities: index of a source to its share kept, in (0, 1].

    Returns:
        The exact thresholds; infinity if there is no entry.
    """
    numel = origin.numel()
    ranks = {index: kept_count(numel, density) for index, density in densities.items()}
    if not numel:
        return dict.fromkeys(ranks, math.inf)
    vectors = {index: TaskVector(tuned[index], origin) for index in ranks}
    found: dict[int, float | None] = {}
    if numel > _SMALL and origin.device.type == "cpu":
        brackets = {index: Bracket(vectors[index], rank) for index, rank in ranks.items()}
        _count(brackets, tuned, origin)
        found = {index: bracket.kth_largest() for index, bracket in brackets.items()}
    limits = {}
    for index, rank in ranks.items():
        limit = found.get(index)
        limits[index] = kth_largest_magnitude(vectors[index], rank) if limit is None else limit
    return limits


class Bracket:
    """Two magnitudes with the k-th largest almost surely between them, and what a pass finds there."""

    def __init__(self, vector: Vector, k: int) -> None:
        """Take a sample of a vector in memory: runs, whose likeness tells how far to trust it.

        The k-th largest falls out of the bracket in one vector of 100,000.
        """
        share = k / vector.numel()
        runs = vector.sample(_runs(vector.numel() // RUN)).abs_().numpy()
        sample = np.sort(runs, axis=None)[::-1]
        guess = sample[min(_SAMPLE - 1, int(_SAMPLE * share))]
        margin = 5.0 + 4.5 * RUN * math.sqrt(len(runs)) * float(np.std(np.mean(runs >= guess, axis=1)))
        first, last = math.floor(_SAMPLE * share - margin), math.ceil(_SAMPLE * share + margin)
        self._high = sample[first] if first >= 0 else np.float32(np.inf)
        self._low = sample[last] if last < _SAMPLE else np.float32(0.0)
        self._k = k
        self._room = vector.numel() // 4
        self._above = 0
        self._inside = 0
        self._values: list[NDArray[np.float32]] = []

    @property
    def bounds(self) -> tuple[np.float32, np.float32]:
        """Its lower and its upper end."""
        return self._low, self._high

    def count(self, magnitudes: Tensor) -> None:
        """Take in one span: float32 >= 0, on a CPU."""
        sizes = magnitudes.numpy()
        above = sizes > self._high
        inside = (sizes >= self._low) ^ above
        count = int(np.count_nonzero(inside))
        fits = self._low < self._high and self._inside + count <= self._room
        self.add(int(np.count_nonzero(above)), count, sizes[inside] if fits else None)

    def add(self, above: int, inside: int, values: NDArray[np.float32] | None) -> None:
        """Take in how many entries are above it and how many inside, and those; None where they are too many."""
        self._above += above
        self._inside += inside
        if values is not None:
            self._values.append(values)

    def kth_largest(self) -> float | None:
        """Return the k-th largest magnitude, or None where it is not in the bracket, or the bracket holds too many."""
        rank = self._k - self._above
        if not 1 <= rank <= self._inside:
            return None
        if self._low == self._high:
            return float(self._low)
        return None if self._inside > self._room else _ranked(torch.from_numpy(np.concatenate(self._values)), rank)


def _count(brackets: Mapping[int, Bracket], tuned: Mapping[int, Flat], origin: Flat | None) -> None:
    """Have brackets take in all magnitudes of their vectors, or with `origin` of their task vectors."""
    vectors = [tuned[index] for index in brackets]
    if cpu.takes(*(vector.stored for vector in vectors), *(() if origin is None else (origin.stored,))):
        bounds = np.array([bracket.bounds for bracket in brackets.values()], np.float32)
        for bracket, found in zip(brackets.values(), cpu.magnitudes_within(origin, vectors, bounds), strict=True):
            bracket.add(*found)
        return
    scratch = Scratch(vectors[0].device)
    for span in scratch.over(spans(vectors[0].numel(), vectors[0].device)):
        root = None if origin is None else origin.read(span, scratch)
        for vector, bracket in zip(vectors, brackets.values(), strict=True):
            values = vector.read(span, scratch) if root is None else vector.minus(root, span, scratch)
            bracket.count(values.abs())


def _ranked(sizes: Tensor, k: int) -> float:
    """Return the k-th largest entry of a tensor of any shape."""
    place = sizes.numel() - k
    if sizes.device.type != "cpu":
        return float(sizes.view(-1).kthvalue(place + 1).values)
    return float(np.partition(sizes.view(-1).numpy(), place)[place])


def _runs(count: int) -> Tensor:
    """Return the numbers of some of `count` runs, the same every time; no result depends on them."""
    return (_fractions() * count).long().clamp_(max=count - 1)


@cache
def _fractions() -> Tensor:
    return torch.rand(_SAMPLE // RUN, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort().values


def stream_threshold(stream: Callable[[], Iterable[Tensor]], density: float) -> float:
    """Return the magnitude from which an entry is among the top `density` of all entries of many tensors.

    Two passes over the tensors, constant memory, and the exact result of one big sort.

    Args:
        stream: starts a pass over the tensors (float32); both passes must give the same ones.
        density: share kept, in (0, 1].

    Returns:
        The threshold; infinity if there is no entry at all.
    """
    counts = _counts(stream())
    total = int(counts.sum())
    return _by_histograms(stream, kept_count(total, density), counts) if total else float("inf")


def _by_histograms(stream: Callable[[], Iterable[Tensor]], k: int, counts: Tensor | None = None) -> float:
    """Return the k-th largest magnitude of all entries; `counts` saves the first of two passes."""
    upper, rank = boundary_bin(_counts(stream()) if counts is None else counts, k)
    refined = torch.zeros(LOWER_BINS, dtype=torch.int64)
    for tensor in stream():
        refined += refined_histogram(tensor, upper).cpu()
    lower, _ = boundary_bin(refined, rank)
    return pattern_value(upper, lower)


def _counts(tensors: Iterable[Tensor]) -> Tensor:
    counts = torch.zeros(UPPER_BINS, dtype=torch.int64)
    for tensor in tensors:
        counts += magnitude_histogram(tensor).cpu()
    return counts


def row_thresholds(matrix: Tensor, density: float) -> Tensor:
    """Return, for each row, the magnitude from which an entry is among the row's top `density`.

    Args:
        matrix: float32 of shape (rows, columns), columns > 0.
        density: share kept, in (0, 1].

    Returns:
        float32 of shape (rows, 1).
    """
    columns = matrix.shape[1]
    rank = columns - kept_count(columns, density) + 1
    return matrix.abs().kthvalue(rank, dim=1, keepdim=True).values


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.int32)
