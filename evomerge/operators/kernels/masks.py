"""Random masks from a counter-based generator.

Element j of a parameter has a word of 32 bits; its upper 31, read as a fraction, are the element's uniform number u_j.
It is kept iff u_j < density. So the masks of one source nest as the density grows, and depend neither on order,
shards, threads nor device.

Elements come in blocks of 65536. Word b of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195),
started at the key of (seed, parameter name, source identity), gives block b two keys of 32 bits, k (lower) and h
(upper). The word of the i-th element of a block is

    x = m_0·i + k;  x ^= x >> 15;  x = m_1·x + h;  x ^= x >> 16;  x = m_2·x

modulo 2^32, where >> copies the sign: that saves an operation, and costs a bit of the 32 each time. m_0 is nearest to
2^32 divided by the golden ratio, m_1 and m_2 are those of `lowbias32` (C. Wellons's hash prospector, public domain).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from evomerge.seeds import derive, splitmix64

BLOCK = 1 << 16
"""Elements that share a pair of keys."""
_DEVICE_BLOCKS = 1 << 10
"""Blocks made at a time where a launch costs more than an element."""
_BITS = 31


def _signed(value: int) -> int:
    """Return the int32 with the same 32 lower bits."""
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _word(value: int) -> Tensor:
    """Return a number as PyTorch wants it beside int32: a plain one costs a conversion at each use."""
    return torch.tensor(_signed(value), dtype=torch.int32)


_M_0, _M_1, _M_2 = _word(0x9E37_79B1), _word(0x7FEB_352D), _word(0x846C_A68B)
_1, _15, _16, _31 = _word(1), _word(15), _word(16), _word(31)


def mask_key(seed: int, name: str, source_id: str) -> int:
    """Return the 64-bit key of the mask of one source for one parameter."""
    return derive(seed, "mask", name, source_id)


def keep_mask(numel: int, key: int, density: float, *, offset: int = 0, device: torch.device | None = None) -> Tensor:
    """Return which of `numel` elements are kept, each with probability `density`.

    Args:
        numel: number of elements.
        key: from `mask_key`.
        density: in [0, 1]; rounded up to a multiple of 2^-31.
        offset: row-major index of the first element in the whole parameter.
        device: where the mask is made; the bits are the same everywhere.

    Returns:
        bool of shape (numel,).
    """
    mask, limit = torch.empty(numel, dtype=torch.bool, device=device), limit_word(density)
    for start, word in _words(numel, key, offset, mask.device):
        torch.lt(word, limit, out=mask[start : start + word.numel()])
    return mask


def drop_entries(values: Tensor, key: int, density: float, *, offset: int = 0) -> Tensor:
    """Set to 0 in place what `keep_mask` does not keep.

    Args:
        values: float32 of shape (numel,), contiguous.
        key: from `mask_key`.
        density: in [0, 1].
        offset: row-major index of the first value in the whole parameter.

    Returns:
        `values`.
    """
    bits, limit = values.view(torch.int32), _word(limit_word(density))
    for start, word in _words(values.numel(), key, offset, values.device):
        # Negative, hence all ones after the shift, where the word is below the limit; no difference overflows.
        kept = word.sub_(limit).bitwise_right_shift_(_31)
        bits[start : start + word.numel()].bitwise_and_(kept)
    return values


def uniform(numel: int, key: int, *, offset: int = 0, device: torch.device | None = None) -> Tensor:
    """Return the uniform numbers of `numel` elements; `keep_mask` keeps those below its density.

    Args:
        numel: number of elements.
        key: from `mask_key`.
        offset: row-major index of the first element in the whole parameter.
        device: where they are made; the bits are the same everywhere.

    Returns:
        float64 of shape (numel,), multiples of 2^-31 in [0, 1).
    """
    numbers = torch.empty(numel, dtype=torch.float64, device=device)
    for start, word in _words(numel, key, offset, numbers.device):
        numbers[start : start + word.numel()] = word
    return numbers.mul_(2.0**-_BITS).add_(0.5)


def limit_word(density: float) -> int:
    """Return L such that, for an integer v from 0 and u = v / 2^31, v - 2^30 < L exactly where u < density."""
    return math.ceil(density * 2.0**_BITS) - (1 << (_BITS - 1))


def _words(numel: int, key: int, offset: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, words from there on), blocks at a time: int32 in [-2^30, 2^30), to be changed before the next."""
    counter = _counter(device)
    first, last = offset // BLOCK, -(-(offset + numel) // BLOCK)
    width = 1 if device.type == "cpu" else _DEVICE_BLOCKS
    words = torch.empty(min(width, last - first), BLOCK, dtype=torch.int32, device=device)
    spare = torch.empty_like(words)
    for block in range(first, last, width):
        count = min(width, last - block)
        _hash(counter, [block_keys(key, block + place) for place in range(count)], words[:count], spare[:count])
        place = block * BLOCK - offset
        yield max(0, place), words.view(-1)[max(0, -place) : min(count * BLOCK, numel - place)]


@cache
def _counter(device: torch.device) -> Tensor:
    """Return m_0·i for the elements of a block."""
    return torch.arange(BLOCK, dtype=torch.int32, device=device).mul_(_M_0).view(1, BLOCK)


def _hash(counter: Tensor, keys: list[tuple[int, int]], words: Tensor, spare: Tensor) -> None:
    """Write the words of blocks, less their lowest bit, into `words`, shape (blocks, BLOCK)."""
    k, h = torch.tensor(keys, dtype=torch.int32).to(words.device).T.unsqueeze(2)
    torch.add(counter, k, out=words)
    words.bitwise_xor_(torch.bitwise_right_shift(words, _15, out=spare)).mul_(_M_1).add_(h)
    words.bitwise_xor_(torch.bitwise_right_shift(words, _16, out=spare)).mul_(_M_2).bitwise_right_shift_(_1)


def block_keys(key: int, block: int) -> tuple[int, int]:
    """Return the two keys of a block: SplitMix64's word of that number, in halves."""
    drawn = splitmix64(key, block)
    return _signed(drawn), _signed(drawn >> 32)
