"""Sums of models and task vectors, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import SourceError
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import normalized

finite = st.floats(-4, 4, width=32)
weights = st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3)
stacks = hnp.arrays(np.float32, st.tuples(st.just(4), st.integers(1, 30)), elements=finite)


def run(method: str, tensors: Sequence[object], base: object, **params: float | bool | list[float]) -> torch.Tensor:
    aliases = [f"s{index}" for index in range(len(tensors))]
    used = {
        key: dict(zip(aliases, value, strict=True)) if isinstance(value, list) else value
        for key, value in params.items()
    }
    spec = get(method)
    return load(spec)(
        [torch.tensor(np.asarray(tensor, dtype=np.float32)) for tensor in tensors],
        torch.tensor(np.asarray(base, dtype=np.float32)) if spec.base == "required" else None,
        spec.complete(used, aliases),
        Context(name="p", source_ids=tuple(aliases)),
    )


@settings(max_examples=60, deadline=None)
@given(stack=stacks, weight=weights, normalize=st.booleans())
def test_linear_is_the_weighted_mean(stack: np.ndarray, weight: list[float], normalize: bool) -> None:
    """Tolerance: float32 rounding of 3 products, on the scale of the terms."""
    total = sum(weight) if normalize and abs(sum(weight)) >= 1e-8 else 1.0
    exact = np.tensordot(np.array(weight) / total, stack[1:].astype(np.float64), axes=1)
    size = np.abs(np.array(weight) / total) @ np.abs(stack[1:].astype(np.float64)) + 1e-30
    actual = run("linear", list(stack[1:]), stack[0], weight=weight, normalize=normalize).numpy()
    assert (np.abs(actual - exact) <= 1e-6 * size).all()


@settings(max_examples=60, deadline=None)
@given(stack=stacks, weight=weights, scale=st.floats(-1, 2))
def test_task_arithmetic_adds_scaled_task_vectors(stack: np.ndarray, weight: list[float], scale: float) -> None:
    deltas = (stack[1:] - stack[0]).astype(np.float64)
    exact = stack[0] + scale * np.tensordot(np.array(weight), deltas, axes=1)
    size = np.abs(stack[0]) + abs(scale) * (np.abs(np.array(weight)) @ np.abs(deltas)) + 1e-30
    actual = run("task_arithmetic", list(stack[1:]), stack[0], weight=weight, scale=scale).numpy()
    assert (np.abs(actual - exact) <= 1e-6 * size).all()


def test_linear_averages_by_default() -> None:
    assert run("linear", [[1.0, 2.0], [3.0, 6.0]], None).tolist() == [2.0, 4.0]


def test_weights_that_cancel_divide_by_one() -> None:
    assert normalized((1.0, -1.0)) == (1.0, -1.0)
    assert normalized((1e-9,)) == (1e-9,)
    assert run("linear", [[3.0], [1.0]], None, weight=[1.0, -1.0]).tolist() == [2.0]


def test_scale_zero_gives_the_base_bit_for_bit() -> None:
    base = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    base[0] = -0.0
    for method in ("task_arithmetic", "ties", "dare_linear", "dare_ties"):
        result = run(method, [base.numpy() + 1, base.numpy() - 2], base.numpy(), scale=0.0)
        assert torch.equal(result.view(torch.int32), base.view(torch.int32)), method


def test_identical_experts_add_up() -> None:
    assert run("task_arithmetic", [[2.0]] * 3, [1.0]).tolist() == [4.0]
    assert run("task_arithmetic", [[2.0]] * 3, [1.0], normalize=True).tolist() == [2.0]


def test_small_deltas_of_bfloat16_models_survive_in_float32() -> None:
    """A bfloat16 sum would swallow most of them; float32 keeps them to its own precision."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(10_000, generator=generator) * 0.02).bfloat16().float()
    delta = torch.randn(10_000, generator=generator) * 2e-5
    result = run("task_arithmetic", [(base + delta).numpy()], base.numpy(), weight=0.5)
    # Tolerance: two roundings of values of about 0.02.
    assert torch.allclose(result - base, delta / 2, rtol=0, atol=1e-8)


def test_wrong_inputs_are_refused() -> None:
    kernel, params = load(get("task_arithmetic")), get("task_arithmetic").complete({}, ["a"])
    context = Context(name="p", source_ids=("a",))
    tensor = torch.zeros(2)
    with pytest.raises(SourceError, match="name a base"):
        kernel([tensor], None, params, context)
    with pytest.raises(SourceError, match="float32"):
        kernel([tensor.double()], tensor, params, context)
    with pytest.raises(SourceError, match="one identity a tensor"):
        kernel([tensor, tensor], tensor, params, context)
