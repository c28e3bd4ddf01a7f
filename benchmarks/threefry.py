"""The normal numbers that JAX draws from a seed, without JAX: so that an experiment starts from the same weights.

JAX's generator is Threefry-2x32 (Salmon et al. 2011, doi:10.1145/2063384.2063405). Up to version 0.4 it laid the
counters of a draw in two halves; since 0.5 every number has a counter of its own ("partitionable"), and equal seeds
give other numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint32]
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def seed_key(seed: int) -> Words:
    """Return the key of a seed below 2^32, as `jax.random.PRNGKey` does."""
    return np.array([0, seed], dtype=np.uint32)


def split(key: Words, count: int, *, partitionable: bool) -> Words:
    """Return `count` keys of a key, shape (count, 2), as `jax.random.split` does."""
    if partitionable:
        return np.stack(_threefry(key, np.zeros(count, dtype=np.uint32), np.arange(count, dtype=np.uint32)), axis=1)
    return np.concatenate(_threefry(key, *_halves(2 * count))).reshape(count, 2)


def normal(key: Words, count: int, *, partitionable: bool) -> Tensor:
    """Return standard normal numbers, float32 of shape (count,) with an even count, as `jax.random.normal` does."""
    if partitionable:
        left, right = _threefry(key, np.zeros(count, dtype=np.uint32), np.arange(count, dtype=np.uint32))
        words = left ^ right
    else:
        words = np.concatenate(_threefry(key, *_halves(count)))
    # 23 bits as the mantissa of a number in [1, 2), then stretched over (-1, 1).
    unit = ((words >> np.uint32(9)) | np.uint32(0x3F80_0000)).view(np.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = np.maximum(low, unit * (np.float32(1) - low) + low)
    return torch.erfinv(torch.from_numpy(uniform)) * np.float32(np.sqrt(2))


def _halves(count: int) -> tuple[Words, Words]:
    counters = np.arange(count, dtype=np.uint32)
    return counters[: count // 2], counters[count // 2 :]


def _threefry(key: Words, left: Words, right: Words) -> tuple[Words, Words]:
    """Encrypt counters in 20 rounds; additions wrap modulo 2^32."""
    keys = [np.full(1, word, dtype=np.uint32) for word in (*key, key[0] ^ key[1] ^ np.uint32(0x1BD1_1BDA))]
    left, right = left + keys[0], right + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            left = left + right
            right = left ^ ((right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation)))
        left = left + keys[(group + 1) % 3]
        right = right + keys[(group + 2) % 3] + np.uint32(group + 1)
    return left, right
