"""Normal noise from a counter-based generator: a pure function of a seed and the place of a weight.

Word i is mix(key + (i + 1)·γ) with `mix` the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
doi:10.1145/2660193.2660195) and the key from the seed. Words 2i and 2i + 1 give weights 2i and
2i + 1 by the transform of Box and Muller 1958 (doi:10.1214/aoms/1177706645), in double precision. So any block of
the noise can be made alone, on any shard; only the last bit of logarithm, sine and cosine is the NumPy build's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.seeds import derive

_GAMMA = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2 = np.uint64(0x94D0_49BB_1331_11EB)
_SPAN = 1 << 16
"""Weights made at a time: a megabyte of intermediates, which stays in the cache."""


def noise(seed: int, start: int, stop: int) -> NDArray[np.float64]:
    """Return standard normal numbers, one for each place.

    Args:
        seed: any whole number.
        start: first place, the flat index of a weight, >= 0.
        stop: first place after them.

    Returns:
        float64 of shape (stop - start,).
    """
    key = np.uint64(derive(seed, "noise"))
    found = np.empty(stop - start)
    for first in range(start, stop, _SPAN):
        last = min(first + _SPAN, stop)
        pairs = _pairs(key, first // 2, -(-last // 2))
        found[first - start : last - start] = pairs[first % 2 : first % 2 + last - first]
    return found


def _pairs(key: np.uint64, first: int, last: int) -> NDArray[np.float64]:
    """Return the numbers of the pairs of places from `first` to below `last`."""
    words = np.arange(2 * first + 1, 2 * last + 1, dtype=np.uint64)
    words *= _GAMMA
    words += key
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        words ^= words >> np.uint64(shift)
        words *= factor
    words ^= words >> np.uint64(31)
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log1p(-uniform[0::2]))  # 1 - u lies in (0, 1]
    angle = (2.0 * np.pi) * uniform[1::2]
    normal = np.empty(len(words))
    np.multiply(radius, np.cos(angle), out=normal[0::2])
    np.multiply(radius, np.sin(angle), out=normal[1::2])
    return normal
