"""Sums, elections and thresholds in one pass over memory, compiled for the CPU by Numba.

PyTorch makes a pass for each operation, and most of their time goes into moving vectors. Here a block of a tensor stays
in the first cache from what is stored to the rounded result. The arithmetic is float32, as in the kernels that call
these functions, which say what is computed; float16 and other devices are theirs alone.

Tensors come as addresses, since NumPy has no bfloat16; whoever passes them holds the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

BLOCK = 1024
"""Elements that are worked on together; a divisor of `masks.BLOCK`."""
MASK_BLOCK = 1 << 16
"""`masks.BLOCK`."""
WHOLE, TRIM, DROP = 0, 1, 2
"""What becomes of a task vector: nothing; entries below a magnitude become 0; entries drawn at random do."""
FLOAT32, BFLOAT16 = 0, 1
"""How a tensor is stored."""
LANES = 64
"""Partial sums of a norm."""
FEW = 16
"""Elements that are looked through together for those within a bracket."""
TERM = np.dtype(
    [
        ("address", np.int64),
        ("kind", np.int64),
        ("mode", np.int64),
        ("keys", np.int64),
        ("bar", np.int32),
        ("limit", np.float32),
        ("weight", np.float32),
        ("factor", np.float32),
    ]
)
"""One source: where it is and how it is stored; what becomes of it: magnitude from which entries are kept, or the row
of `keys` where those of its mask begin and the word below which entries are kept; w_i, and what it is multiplied by."""

_f32, _i32, _u32 = np.float32, np.int32, np.uint32
_MAGNITUDE, _INFINITY = _u32(0x7FFF_FFFF), _u32(0x7F80_0000)
_M_0, _M_1, _M_2 = _i32(-1640531535), _i32(0x7FEB_352D), _i32(0x846C_A68B - (1 << 32))


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function, and keep the result on the disk where there is a folder for it."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's can be written
        compiled = njit(**options)(function)
    return compiled


def _intrinsic(result: Any, argument: Any, generate: Callable[..., Any]) -> Any:
    """Return a function for compiled code that is one instruction of LLVM."""

    def typed(_context: Any, _argument: Any) -> Any:
        return result(argument), generate

    return intrinsic(typed)


def _to_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


def _same_bits(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


_halves_at = _intrinsic(types.CPointer(types.uint16), types.int64, _to_pointer)
_floats_at = _intrinsic(types.CPointer(types.float32), types.int64, _to_pointer)
_float_of = _intrinsic(types.float32, types.uint32, _same_bits)
_bits_of = _intrinsic(types.uint32, types.float32, _same_bits)


@_compile
def _widened(half):  # type: ignore[no-untyped-def]
    """Return a bfloat16, given by its bits, as float32."""
    return _float_of(_u32(half) << _u32(16))


@_compile
def _rounded(value):  # type: ignore[no-untyped-def]
    """Return the bits of a float32 rounded to bfloat16: to nearest, ties to even."""
    word = _bits_of(value)
    rounded = _u32(word + _u32(0x7FFF) + ((word >> _u32(16)) & _u32(1))) >> _u32(16)
    not_a_number = (word & _MAGNITUDE) > _INFINITY
    return _u32(0x7FC0) if not_a_number else rounded


@_compile
def _read(address, kind, start, count, values):  # type: ignore[no-untyped-def]
    """Read a block as float32."""
    if kind == BFLOAT16:
        halves = carray(_halves_at(address + 2 * start), count)
        for place in range(count):
            values[place] = _widened(halves[place])
    else:
        floats = carray(_floats_at(address + 4 * start), count)
        for place in range(count):
            values[place] = floats[place]


@_compile
def _read_task(address, kind, start, count, root, values):  # type: ignore[no-untyped-def]
    """Read a block of a task vector."""
    if kind == BFLOAT16:
        halves = carray(_halves_at(address + 2 * start), count)
        for place in range(count):
            values[place] = _widened(halves[place]) - root[place]
    else:
        floats = carray(_floats_at(address + 4 * start), count)
        for place in range(count):
            values[place] = floats[place] - root[place]


@_compile
def _write(address, kind, start, count, root, values, scale):  # type: ignore[no-untyped-def]
    """Write a block of θ_0 + scale·values."""
    if kind == BFLOAT16:
        halves = carray(_halves_at(address + 2 * start), count)
        for place in range(count):
            halves[place] = _rounded(root[place] + scale * values[place])
    else:
        floats = carray(_floats_at(address + 4 * start), count)
        for place in range(count):
            floats[place] = root[place] + scale * values[place]


@_compile
def _drop(values, start, count, keys, bar):  # type: ignore[no-untyped-def]
    """Set to 0 what `masks.keep_mask` does not keep; `keys` are its blocks' keys, int32 of shape (blocks, 2)."""
    block, first = start // MASK_BLOCK, start % MASK_BLOCK
    low, high = keys[block, 0], keys[block, 1]
    for place in range(count):
        word = _i32(_i32(_i32(first + place) * _M_0) + low)
        word = _i32(_i32(_i32(word ^ (word >> _i32(15))) * _M_1) + high)
        word = _i32(_i32(word ^ (word >> _i32(16))) * _M_2) >> _i32(1)
        values[place] = values[place] if word < bar else _f32(0.0)


@_compile
def _thin(term, start, count, keys, values):  # type: ignore[no-untyped-def]
    """Thin out a block of a task vector."""
    if term.mode == TRIM:
        limit = term.limit
        for place in range(count):
            values[place] = _f32(0.0) if abs(values[place]) < limit else values[place]
    elif term.mode == DROP:
        _drop(values, start, count, keys[term.keys :], term.bar)


def _load(vector: Any, place: int) -> Any:
    """Return an element of a vector as float32; bits of 16 are a bfloat16 (in compiled code alone, as `_store`)."""


def _store(vector: Any, place: int, value: Any) -> Any:
    """Put a float32 into a vector, where bits of 16 are a bfloat16; return the bits of its magnitude as float32."""


@overload(_load, inline="always")
def _load_compiled(vector, place):  # type: ignore[no-untyped-def]  # noqa: ARG001  Numba matches the names
    if vector.dtype == types.uint16:
        return lambda vector, place: _widened(vector[place])
    return lambda vector, place: vector[place]


@overload(_store)
def _store_compiled(vector, place, value):  # type: ignore[no-untyped-def]  # noqa: ARG001  Numba matches the names
    def halves(vector, place, value):  # type: ignore[no-untyped-def]
        half = _u32(_rounded(value))
        vector[place] = half
        return _u32((half << _u32(16)) & _MAGNITUDE)

    def floats(vector, place, value):  # type: ignore[no-untyped-def]
        vector[place] = value
        return _u32(_bits_of(value) & _MAGNITUDE)

    return halves if vector.dtype == types.uint16 else floats


@_compile
def sum_vectors(out, origin, vectors, factors):  # type: ignore[no-untyped-def]
    """Write θ_0 + Σ c_i τ_i to `out`, without an `origin` (None) Σ c_i θ_i; tell whether all of it is finite.

    It is `sum_terms` of vectors that lose nothing, compiled anew for each number of them: one loop for all of them
    waits for memory alone.

    Args:
        out: float32, or the bits of bfloat16 (uint16), as all vectors are.
        origin: θ_0, or None.
        vectors: θ_i, a tuple of one type.
        factors: c_i, a tuple of float32.
    """
    largest = _u32(0)
    for place in range(len(out)):
        total = _f32(-0.0)
        if origin is None:
            for index in range(len(vectors)):
                total += factors[index] * _load(vectors[index], place)
        else:
            root = _load(origin, place)
            for index in range(len(vectors)):
                total += factors[index] * (_load(vectors[index], place) - root)
            total += root
        largest = max(largest, _store(out, place, total))
    return largest < _INFINITY


@_compile
def sum_terms(out, origin, numel, terms, keys):  # type: ignore[no-untyped-def]
    """Write θ_0 + Σ c_i τ̂_i; where `origin` has no address, Σ c_i θ_i."""
    root, total, values = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    root[:] = -0.0  # which changes nothing that it is added to, 0 and -0 included
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        if origin.address:
            _read(origin.address, origin.kind, start, count, root)
        total[:] = -0.0
        for index in range(len(terms)):
            term, factor = terms[index], terms[index].factor
            if origin.address:
                _read_task(term.address, term.kind, start, count, root, values)
                _thin(term, start, count, keys, values)
            else:
                _read(term.address, term.kind, start, count, values)
            for place in range(count):
                total[place] += factor * values[place]
        _write(out.address, out.kind, start, count, root, total, _f32(1.0))


@_compile
def elect_terms(out, origin, numel, terms, keys, scale, tilt, mean):  # type: ignore[no-untyped-def]
    """Write θ_0 + λ·merge(elect(τ̂_i)) as `votes.Votes` merges; where Σ v_i is NaN or infinite the result is NaN."""
    root, total = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    agreed, divisor = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    deltas = np.empty((len(terms), BLOCK), np.float32)
    least = _f32(np.inf)
    for index in range(len(terms)):
        least = min(least, abs(terms[index].weight))
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        _read(origin.address, origin.kind, start, count, root)
        total[:] = 0.0
        for index in range(len(terms)):
            term, factor, values = terms[index], terms[index].factor, deltas[index]
            _read_task(term.address, term.kind, start, count, root, values)
            _thin(term, start, count, keys, values)
            for place in range(count):
                total[place] += factor * values[place]
        for place in range(count):
            votes = total[place]
            sign = _f32(1.0) if votes > 0 else (_f32(-1.0) if votes < 0 else tilt)
            total[place] = sign + votes * _f32(0.0)
        agreed[:] = 0.0
        divisor[:] = 0.0
        for index in range(len(terms)):
            factor, weight, values = terms[index].factor, abs(terms[index].weight), deltas[index]
            for place in range(count):
                share = factor * values[place] * total[place]
                agreed[place] += share if share > 0 else _f32(0.0)
                divisor[place] += weight if share > 0 else _f32(0.0)
        for place in range(count):
            merged = agreed[place] / max(divisor[place], least) if mean else agreed[place]
            total[place] *= merged
        _write(out.address, out.kind, start, count, root, total, scale)


@_compile
def norm_terms(origin, numel, terms, keys, norms):  # type: ignore[no-untyped-def]
    """Add ‖τ_i‖₁ and ‖τ̂_i‖₁ to `norms`, float64 of shape (terms, 2)."""
    root, values, lanes = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(LANES, np.float32)
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        _read(origin.address, origin.kind, start, count, root)
        for index in range(len(terms)):
            term = terms[index]
            _read_task(term.address, term.kind, start, count, root, values)
            norms[index, 0] += _norm(values, count, lanes)
            _thin(term, start, count, keys, values)
            norms[index, 1] += _norm(values, count, lanes)


@_compile
def _norm(values, count, lanes):  # type: ignore[no-untyped-def]
    """Return Σ |x| of a block: 64 sums in float32, together in float64."""
    lanes[:] = 0.0
    values[count:] = 0.0
    for start in range(0, BLOCK, LANES):
        for lane in range(LANES):
            lanes[lane] += abs(values[start + lane])
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    return total


@_compile
def count_magnitudes(origin, numel, terms, bounds, found, inside):  # type: ignore[no-untyped-def]
    """Count the magnitudes of task vectors, without `origin` of vectors, above a bracket, and collect those within it.

    `bounds` are float32 of shape (terms, 2), the brackets' lower and upper ends; `found` int64 of shape (terms, 2),
    zeros, to how many are above and how many within; `inside` float32 of shape (terms, room), to those within, in the
    order of the vector, as far as they find room.
    """
    root, values = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    room = inside.shape[1]
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        if origin.address:
            _read(origin.address, origin.kind, start, count, root)
        for index in range(len(terms)):
            _read_task(terms[index].address, terms[index].kind, start, count, root, values)
            low, high, above, some = bounds[index, 0], bounds[index, 1], _i32(0), _i32(0)
            for place in range(count):
                size = abs(values[place])
                above += _i32(size > high)
                some += _i32(size >= low)
            free = found[index, 1]
            found[index, 0] += above
            found[index, 1] += some - above
            if low < high and free + count <= room:
                _collect(values, count, low, high, inside[index, free:])


@_compile
def _collect(values, count, low, high, into):  # type: ignore[no-untyped-def]
    """Put the magnitudes within a bracket, which are few, one after the other."""
    free = 0
    for start in range(0, count, FEW):
        stop, some = min(start + FEW, count), _i32(0)
        for place in range(start, stop):
            size = abs(values[place])
            some += _i32(size >= low) - _i32(size > high)
        if some:
            for place in range(start, stop):
                size = abs(values[place])
                into[free] = size
                free += (size >= low) & (size <= high)
