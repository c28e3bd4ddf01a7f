"""Exact order statistics of several vectors that stream by together, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.selection import (
    LOWER_BINS,
    UPPER_BINS,
    boundary_bin,
    magnitude_histogram,
    pattern_value,
    refined_histogram,
)

_SMALL = 1 << 17
"""Up to so many elements a sort is quicker than two passes of histograms."""
Stream = Callable[[], Iterable[Sequence[Tensor]]]
"""Starts a pass: spans of every vector (float32), span by span; each pass must give the same ones."""


def ranked(stream: Stream, numel: int, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the magnitudes at some ranks of each vector: the exact result of a sort, in two passes.

    Args:
        stream: of the vectors.
        numel: elements of each vector, at least 1.
        ranks: for each vector, ranks from 1 (the largest magnitude) to `numel`.
    """
    if numel <= _SMALL:
        whole = [torch.cat(parts).abs().sort(descending=True).values for parts in zip(*stream(), strict=True)]
        return [[float(vector[rank - 1]) for rank in of_one] for vector, of_one in zip(whole, ranks, strict=True)]
    upper = [torch.zeros(UPPER_BINS, dtype=torch.int64) for _ in ranks]
    for parts in stream():
        for counts, part in zip(upper, parts, strict=True):
            counts.add_(magnitude_histogram(part).cpu())
    places = [[boundary_bin(counts, rank) for rank in of_one] for counts, of_one in zip(upper, ranks, strict=True)]
    lower = [{bin_: torch.zeros(LOWER_BINS, dtype=torch.int64) for bin_, _ in of_one} for of_one in places]
    for parts in stream():
        for refined, part in zip(lower, parts, strict=True):
            for bin_, counts in refined.items():
                counts.add_(refined_histogram(part, bin_).cpu())
    return [
        [pattern_value(bin_, boundary_bin(refined[bin_], rank)[0]) for bin_, rank in of_one]
        for refined, of_one in zip(lower, places, strict=True)
    ]
