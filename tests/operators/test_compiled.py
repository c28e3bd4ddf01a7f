"""The compiled passes give what PyTorch's operations give, to the rounding of float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evomerge import operators
from evomerge.operators.kernels import compiled, cpu, masks
from evomerge.operators.kernels.context import Context, Kernel
from evomerge.operators.kernels.inputs import Flat
from evomerge.operators.kernels.selection import kth_largest_magnitude
from evomerge.operators.kernels.sparsified import dare_linear, dare_ties, ties
from evomerge.operators.kernels.thinning import Drop, Whole
from evomerge.operators.kernels.weighted import linear, task_arithmetic

LENGTHS = (1, 63, compiled.BLOCK, compiled.BLOCK + 1, masks.BLOCK + 5 * compiled.BLOCK + 17)
KERNELS: Mapping[str, Kernel] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}


def drawn(length: int, count: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=draw).to(dtype) for _ in range(count)]


def merged(name: str, tensors: Sequence[Tensor], dtype: torch.dtype, seed: int, **given_params: Any) -> Tensor:
    base, *tuned = tensors
    weights = {f"s{place}": 0.7 - 0.45 * place for place in range(len(tuned))}
    params = operators.get(name).complete({"weight": weights, **given_params}, list(weights))
    context = Context(
        name="layer", source_ids=tuple(f"id{place}" for place in range(len(tuned))), seed=seed, dtype=dtype
    )
    return KERNELS[name](tuned, None if name == "linear" else base, params, context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("linear", {}),
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "normalize": False, "zero_sign": "positive", "rescale": "l1"}),
        ("dare_linear", {"density": 0.4, "rescale": "l1"}),
        ("dare_ties", {"density": 0.4}),
    ],
)
def test_both_ways_agree(
    name: str, params: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, length in enumerate(LENGTHS):
        tensors = drawn(length, 4, dtype, seed)
        fast = merged(name, tensors, torch.float32, seed, **params)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "takes", lambda *_: False)
            slow = merged(name, tensors, torch.float32, seed, **params)
        torch.testing.assert_close(fast, slow, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", [True, False])
def test_vectors_at_odd_addresses_and_of_mixed_dtypes_are_summed_alike(dtype: torch.dtype, base: bool) -> None:
    origin, *tuned = (Flat(tensor) for tensor in drawn(1000, 4, dtype, 0))
    shifted = [Flat(at_an_odd_address(flat.stored)) for flat in tuned]
    mixed = [Flat(tuned[0].stored.double().to(torch.float32)), *tuned[1:]]
    outs = []
    for flat in (tuned, shifted, mixed, [shifted[0], *tuned[1:]]):
        outs.append(torch.empty(1000, dtype=dtype))
        cpu.write_sum(outs[-1], origin if base else None, flat, {0: 0.3, 1: -0.4, 2: 0.9}, Whole())
    assert all(torch.equal(out, outs[0]) for out in outs[1:])


@given(st.sampled_from([0.0, 1.0, 3e38, 3.4e38, np.inf, -np.inf, np.nan]), st.integers(0, 999), st.booleans())
def test_a_sum_is_called_finite_just_where_all_of_it_is(value: float, place: int, base: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        origin, *tuned = drawn(1000, 3, torch.float32, 0)
        tuned[1][place] = value
        flat = [Flat(tensor) for tensor in tuned]
        out = torch.empty(1000, dtype=dtype)
        known = cpu.write_sum(out, Flat(origin) if base else None, flat, {0: 0.5, 1: 1.05}, Whole())
        assert known == bool(torch.isfinite(out).all())


def at_an_odd_address(tensor: Tensor) -> Tensor:
    room = bytearray(tensor.nbytes + 1)
    shifted = torch.frombuffer(room, dtype=tensor.dtype, offset=1)
    return shifted.copy_(tensor)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2000), st.booleans())
def test_any_float32_is_rounded_to_bfloat16_as_pytorch_rounds_it(words: list[int], negative: bool) -> None:
    values = torch.from_numpy(np.array(words, np.uint32).view(np.float32).copy())
    if negative:
        values = -values
    out = torch.empty(len(values), dtype=torch.bfloat16)
    cpu.write_sum(out, None, [Flat(values)], {0: 1.0}, Whole())
    expected = values.to(torch.bfloat16)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    finite = ~torch.isnan(expected)
    assert torch.equal(out.view(torch.int16)[finite], expected.view(torch.int16)[finite])  # the sign of 0 included


@given(st.integers(1, 3 * masks.BLOCK), st.floats(0, 1, exclude_max=True), st.integers(0, 2**64 - 1))
def test_the_same_entries_are_dropped(length: int, density: float, key: int) -> None:
    out, ones, zeros = torch.empty(length), torch.ones(length), torch.zeros(length)
    cpu.write_sum(out, Flat(zeros), [Flat(ones)], {0: 1.0}, Drop({0: key}, {0: density}))
    assert torch.equal(out.bool(), masks.keep_mask(length, key, density))


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_through(name: str, bad: float) -> None:
    """Looking at the result is then enough to find it."""
    for place in range(1, 4):
        tensors = drawn(100, 4, torch.float32, place)
        tensors[place][7] = bad
        params = {"density": 0.5} if name == "ties" else {}
        assert torch.isfinite(merged(name, tensors, torch.float32, 0, **params)).logical_not().nonzero().tolist() == [
            [7]
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draw", [lambda values: values, lambda values: values.round(), lambda values: values * 0])
def test_the_kth_largest_magnitude_is_exact(dtype: torch.dtype, draw: Callable[[Tensor], Tensor]) -> None:
    values = draw(drawn(300_001, 1, torch.float32, 0)[0]).to(dtype)
    ordered = np.sort(np.abs(values.float().numpy()))[::-1]
    for k in (1, 2, 1000, 150_000, 299_999, 300_001):
        assert kth_largest_magnitude(values, k) == ordered[k - 1]
