"""Memory on a CPU: for what is kept and for results, in the large pages that NumPy asks the system for.

With small ones a merge waits for their places to be looked up. Memory that is new to the process costs as much as the
arithmetic, since the system finds and clears each page on its first use: what a result leaves is used again.
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGE = 1 << 20
"""Bytes from which memory comes from the system for each tensor anew."""
_MOST_BYTES = 1 << 29
"""Memory that nobody holds is kept up to this size."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MOST_AT_THE_END = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep what is freed for what is asked for later, for the rest of the process.

    Else it gives each large block back to the system, which clears the next one anew, page by page. Where vLLM packs
    weights on a CPU, into new memory for each candidate, that takes about as long as the packing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST_AT_THE_END)


def copied(tensor: Tensor, device: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return a copy on a device, in a dtype (None: its own)."""
    dtype = tensor.dtype if dtype is None else dtype
    if torch.device(device).type != "cpu":
        return tensor.to(device=device, dtype=dtype, copy=True)
    memory = np.empty(tensor.numel() * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(tensor.shape).copy_(tensor)


class _Block:
    """Memory that one tensor at a time is in."""

    __slots__ = ("memory",)

    def __init__(self, num_bytes: int) -> None:
        self.memory: NDArray[np.uint8] = np.empty(num_bytes, np.uint8)


class ResultMemory:
    """Gives out vectors; any number of threads may ask, and drop what they were given."""

    def __init__(self) -> None:
        # What gives blocks back is called wherever a tensor ends, so no lock is held here: a list's own methods are
        # each done as a whole.
        self._free: list[_Block] = []

    def empty(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised vector of shape (length,)."""
        num_bytes = length * dtype.itemsize
        if device.type != "cpu" or num_bytes < _LARGE:
            return torch.empty(length, dtype=dtype, device=device)
        block = self._take(num_bytes) or _Block(num_bytes)
        part = block.memory[:num_bytes]
        weakref.finalize(part, self._give_back, block).atexit = False
        return torch.from_numpy(part).view(dtype)

    def _take(self, num_bytes: int) -> _Block | None:
        """Take the smallest free block that is large enough."""
        for block in sorted(self._free[:], key=lambda block: block.memory.nbytes):
            if block.memory.nbytes >= num_bytes:
                try:
                    self._free.remove(block)
                except ValueError:
                    continue  # another thread took it
                return block
        return None

    def _give_back(self, block: _Block) -> None:
        if block.memory.nbytes + sum(free.memory.nbytes for free in self._free[:]) <= _MOST_BYTES:
            self._free.append(block)
