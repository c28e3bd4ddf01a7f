"""Tensors in the memory of a CPU, handed to the compiled passes.

Legend: θ_0 base, τ_i = θ_i - θ_0, τ̂_i after some entries were dropped, c_i coefficient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.operators.kernels import compiled
from evomerge.operators.kernels.inputs import Flat
from evomerge.operators.kernels.masks import BLOCK, block_keys, limit_word
from evomerge.operators.kernels.thinning import Drop, Sparsify, Trim, Whole

_KINDS = {torch.float32: compiled.FLOAT32, torch.bfloat16: compiled.BFLOAT16}
_TILTS = {"zero": 0.0, "positive": 1.0, "negative": -1.0}
_FUSED = 8
"""So many vectors are summed in one loop."""
_ROOM = 4
"""One in so many entries finds room among those within a bracket."""


def takes(*tensors: Tensor) -> bool:
    """Tell whether the compiled passes take tensors as they are: float32 or bfloat16 in a CPU's memory."""
    return all(tensor.device.type == "cpu" and tensor.dtype in _KINDS for tensor in tensors)


def compiles(out: Tensor, origin: Flat | None, flat: Iterable[Flat], thinning: Sparsify) -> bool:
    """Tell whether a merge can be compiled: what becomes of the task vectors is known, and all tensors are taken."""
    known = isinstance(thinning, (Whole, Trim, Drop))
    return known and takes(out, *(vector.stored for vector in flat), *(() if origin is None else (origin.stored,)))


def write_sum(
    out: Tensor, origin: Flat | None, flat: Sequence[Flat], coefficients: Mapping[int, float], thinning: Sparsify
) -> bool:
    """Write θ_0 + Σ c_i τ̂_i to `out`, or without a base Σ c_i θ_i; tell whether it is known that all is finite."""
    vectors = tuple(_elements(flat[index].stored) for index in coefficients if isinstance(thinning, Whole))
    if len(vectors) <= _FUSED and len({(vector.dtype, vector.flags.aligned) for vector in vectors}) == 1:
        root = None if origin is None else _elements(origin.stored)
        factors = tuple(np.float32(factor) for factor in coefficients.values())
        return bool(compiled.sum_vectors(_elements(out), root, vectors, factors))
    terms, keys = _terms(flat, {index: (1.0, factor) for index, factor in coefficients.items()}, thinning)
    compiled.sum_terms(_place(out), _origin(origin), out.numel(), terms, keys)
    return False


def write_election(
    out: Tensor,
    origin: Flat,
    flat: Sequence[Flat],
    shares: Mapping[int, tuple[float, float]],
    thinning: Sparsify,
    *,
    scale: float,
    zero_sign: str,
    mean: bool,
) -> None:
    """Write θ_0 + scale·merge(elect(τ̂_i)) to `out`; `shares` are (w_i, what τ̂_i is multiplied by)."""
    terms, keys = _terms(flat, shares, thinning)
    tilt = np.float32(_TILTS[zero_sign])
    compiled.elect_terms(_place(out), _origin(origin), out.numel(), terms, keys, np.float32(scale), tilt, mean)


def norms(origin: Flat, flat: Mapping[int, Flat], thinning: Sparsify) -> dict[int, tuple[float, float]]:
    """Return (‖τ_i‖₁, ‖τ̂_i‖₁) by source."""
    terms, keys = _terms(flat, dict.fromkeys(flat, (1.0, 1.0)), thinning)
    found = np.zeros((len(terms), 2))
    compiled.norm_terms(_origin(origin), origin.numel(), terms, keys, found)
    return {index: (before, after) for index, (before, after) in zip(flat, found.tolist(), strict=True)}


def magnitudes_within(
    origin: Flat | None, flat: Sequence[Flat], bounds: NDArray[np.float32]
) -> list[tuple[int, int, NDArray[np.float32] | None]]:
    """Count the magnitudes of vectors, or of task vectors, within a bracket.

    Args:
        origin: the base, or None.
        flat: the vectors, not empty, of one length.
        bounds: float32 of shape (vectors, 2): lower and upper end of each vector's bracket, both within.

    Returns:
        For each vector how many are above its bracket and how many within, and those within; None where they are more
        than a quarter of all, or all of one size.
    """
    terms, _ = _terms(flat, dict.fromkeys(range(len(flat)), (1.0, 1.0)), Whole())
    numel = flat[0].numel()
    found = np.zeros((len(flat), 2), np.int64)
    inside = np.empty((len(flat), numel // _ROOM + compiled.BLOCK), np.float32)
    compiled.count_magnitudes(_origin(origin), numel, terms, bounds, found, inside)
    results: list[tuple[int, int, NDArray[np.float32] | None]] = []
    for place, (above, within) in enumerate(found.tolist()):
        fits = bool(bounds[place, 0] < bounds[place, 1]) and within <= numel // _ROOM
        results.append((above, within, inside[place, :within] if fits else None))
    return results


def _terms(
    flat: Sequence[Flat] | Mapping[int, Flat], shares: Mapping[int, tuple[float, float]], thinning: Sparsify
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the sources' table, and the keys of all blocks of all masks, int32 of shape (blocks, 2)."""
    terms = np.zeros(len(shares), compiled.TERM)
    keys: list[tuple[int, int]] = []
    for place, (index, (weight, factor)) in enumerate(shares.items()):
        stored = flat[index].stored
        terms[place] = _place(stored)
        terms[place]["weight"], terms[place]["factor"] = weight, factor
        if isinstance(thinning, Trim) and index in thinning.limits:
            terms[place]["mode"], terms[place]["limit"] = compiled.TRIM, thinning.limits[index]
        elif isinstance(thinning, Drop) and thinning.densities[index] < 1:
            terms[place]["mode"], terms[place]["keys"] = compiled.DROP, len(keys)
            terms[place]["bar"] = limit_word(thinning.densities[index])
            keys += [block_keys(thinning.keys[index], block) for block in range(-(-stored.numel() // BLOCK))]
    return terms, np.array(keys, np.int32).reshape(-1, 2)


def _origin(origin: Flat | None) -> Any:
    return np.zeros(1, compiled.TERM)[0] if origin is None else _place(origin.stored)


def _elements(tensor: Tensor) -> NDArray[Any]:
    """Return a vector as NumPy has it: float32, or the bits of bfloat16 as uint16."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _place(tensor: Tensor) -> Any:
    """Return a row that says where a tensor is and how it is stored."""
    row = np.zeros(1, compiled.TERM)[0]
    row["address"], row["kind"] = tensor.data_ptr(), _KINDS[tensor.dtype]
    return row
