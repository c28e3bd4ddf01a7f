"""Independent random streams, derived from (run seed, purpose, identity). Nothing uses global random state."""

from __future__ import annotations

import hashlib

import numpy as np

_Part = str | int


def derive(seed: int, *parts: _Part) -> int:
    """Return a 64-bit seed that depends on every part and on nothing else (SHA-256 of their text).

    Example:
        >>> derive(0, "random", 3) == derive(0, "random", 3)
        True
        >>> derive(0, "random", 3) == derive(0, "random", 4)
        False
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *parts: _Part) -> np.random.Generator:
    """Return a NumPy generator (Philox) for one purpose and identity."""
    return np.random.Generator(np.random.Philox(derive(seed, *parts)))


class Draws:
    """A few uniform random numbers that belong to one purpose and one identity.

    SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) in plain integers: for a handful of numbers a
    NumPy generator takes far longer to make than these to draw.

    Args:
        key: the purpose's seed, from `derive`.
        identity: for instance a candidate id, >= 0.

    Example:
        >>> draws = Draws(derive(0, "example"), 3)
        >>> 0 <= draws.random() < 1, draws.integer(1)
        (True, 0)
    """

    __slots__ = ("_word",)

    def __init__(self, key: int, identity: int) -> None:
        self._word = _mix(_mix(key) + identity * _GAMMA)

    def random(self) -> float:
        """Return a multiple of 2^-53 in [0, 1)."""
        return (self._next() >> 11) * 2.0**-53

    def integer(self, below: int) -> int:
        """Return a whole number in [0, below), to within below / 2^64 of uniform."""
        return (self._next() * below) >> 64

    def _next(self) -> int:
        self._word += _GAMMA
        return _mix(self._word)


def splitmix64(key: int, place: int) -> int:
    """Return the 64-bit word number `place` (from 0) of SplitMix64 started at `key`."""
    return _mix(key + (place + 1) * _GAMMA)


_GAMMA = 0x9E37_79B9_7F4A_7C15
_MASK = (1 << 64) - 1


def _mix(word: int) -> int:
    """Return SplitMix64's finaliser of a word, modulo 2^64."""
    word &= _MASK
    word = (word ^ (word >> 30)) * 0xBF58_476D_1CE4_E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D0_49BB_1331_11EB & _MASK
    return word ^ (word >> 31)
