"""Exact selection of the largest magnitudes without sorting.

The bit pattern of a non-negative float32 orders like its value, so a radix select needs two passes: a
histogram of the upper 16 bits finds the bin that holds the k-th largest magnitude, a histogram of the lower
16 bits inside that bin finds the value itself. Histograms of parts add up, so a whole model is selected from
while it streams by.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from evomerge.operators.kernels.inputs import spans

UPPER_BINS = 1 << 15
"""Bins of `magnitude_histogram`: 16 upper bits without the sign."""
LOWER_BINS = 1 << 16
"""Bins of `refined_histogram`."""
_MAGNITUDE = 0x7FFF_FFFF
SMALL = 1 << 15
"""Up to so many elements one call of nth_element beats two histograms."""


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


def kth_largest_magnitude(tensor: Tensor, k: int) -> float:
    """Return the k-th largest |x| exactly.

    Args:
        tensor: float32, any shape.
        k: rank from 1 (the largest) to the number of elements.
    """
    if tensor.numel() <= SMALL:
        return float(tensor.abs().view(-1).kthvalue(tensor.numel() - k + 1).values)
    upper, rank = boundary_bin(magnitude_histogram(tensor), k)
    lower, _ = boundary_bin(refined_histogram(tensor, upper), rank)
    return pattern_value(upper, lower)


def stream_threshold(stream: Callable[[], Iterable[Tensor]], density: float) -> float:
    """Return the magnitude from which an entry is among the top `density` of all entries of many tensors.

    Two passes over the tensors, constant memory, and the exact result of one big sort.

    Args:
        stream: starts a pass over the tensors (float32); both passes must give the same ones.
        density: share kept, in (0, 1].

    Returns:
        The threshold; infinity if there is no entry at all.
    """
    counts = torch.zeros(UPPER_BINS, dtype=torch.int64)
    for tensor in stream():
        counts += magnitude_histogram(tensor).cpu()
    total = int(counts.sum())
    if total == 0:
        return float("inf")
    upper, rank = boundary_bin(counts, kept_count(total, density))
    refined = torch.zeros(LOWER_BINS, dtype=torch.int64)
    for tensor in stream():
        refined += refined_histogram(tensor, upper).cpu()
    lower, _ = boundary_bin(refined, rank)
    return pattern_value(upper, lower)


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
