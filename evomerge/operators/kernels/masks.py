"""Random masks from a counter-based generator.

Element j of a parameter has the uniform number u_j = mix(key + (j + 1)·γ) / 2^64 with `mix` the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) and the key from (seed, parameter name,
source identity). It is kept iff u_j < density. So the masks of one source nest as the density grows, and
depend neither on order, shards, threads nor device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evomerge.seeds import derive

# Eight-byte intermediates: a quarter of the usual span stays in the cache.
_CPU_SPAN = 1 << 16
_DEVICE_SPAN = 1 << 24
_BITS = 53


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E37_79B9_7F4A_7C15)
_MIX_1 = _signed(0xBF58_476D_1CE4_E5B9)
_MIX_2 = _signed(0x94D0_49BB_1331_11EB)


def mask_key(seed: int, name: str, source_id: str) -> int:
    """Return the 64-bit key of the mask of one source for one parameter."""
    return derive(seed, "mask", name, source_id)


def keep_mask(numel: int, key: int, density: float, *, offset: int = 0, device: torch.device | None = None) -> Tensor:
    """Return which of `numel` elements are kept, each with probability `density`.

    Args:
        numel: number of elements.
        key: from `mask_key`.
        density: in [0, 1].
        offset: row-major index of the first element in the whole parameter.
        device: where the mask is made; the bits are the same everywhere.

    Returns:
        bool of shape (numel,).
    """
    mask = torch.empty(numel, dtype=torch.bool, device=device)
    width = _CPU_SPAN if mask.device.type == "cpu" else _DEVICE_SPAN
    # u < density for u = v / 2^53 and an integer v is v < ceil(density · 2^53), exactly.
    limit = math.ceil(density * 2.0**_BITS)
    for start in range(0, numel, width):
        stop = min(start + width, numel)
        counter = torch.arange(offset + start + 1, offset + stop + 1, dtype=torch.int64, device=mask.device)
        word = _mix(counter.mul_(_GAMMA).add_(_signed(key)))
        torch.lt(_shift(word, 64 - _BITS), limit, out=mask[start:stop])
    return mask


def uniform(numel: int, key: int, *, offset: int = 0, device: torch.device | None = None) -> Tensor:
    """Return the uniform numbers of `numel` elements; `keep_mask` keeps those below its density.

    Args:
        numel: number of elements.
        key: from `mask_key`.
        offset: row-major index of the first element in the whole parameter.
        device: where they are made; the bits are the same everywhere.

    Returns:
        float64 of shape (numel,), multiples of 2^-53 in [0, 1).
    """
    counter = torch.arange(offset + 1, offset + numel + 1, dtype=torch.int64, device=device)
    word = _mix(counter.mul_(_GAMMA).add_(_signed(key)))
    return _shift(word, 64 - _BITS).to(torch.float64).mul_(2.0**-_BITS)


def _mix(word: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser in place; int64 products wrap modulo 2^64 as unsigned ones do."""
    word.bitwise_xor_(_shift(word, 30)).mul_(_MIX_1)
    word.bitwise_xor_(_shift(word, 27)).mul_(_MIX_2)
    return word.bitwise_xor_(_shift(word, 31))


def _shift(word: Tensor, count: int) -> Tensor:
    """Shift right without copying the sign."""
    return (word >> count).bitwise_and_((1 << (64 - count)) - 1)
