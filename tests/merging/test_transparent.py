"""Methods whose inputs are not looked at one by one show in the result what is not finite."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import InfeasibleError, SourceError
from evomerge.merging import materialise, open_sources, plan
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.recipe import Recipe

# The package's name for it is the function.
module = importlib.import_module("evomerge.merging.materialise")
BAD = (math.nan, math.inf, -math.inf)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"normalize": False}],
    "task_arithmetic": [{}, {"normalize": True}],
    "ties": [
        {"density": density, "scope": scope, "normalize": normalize, "rescale": rescale, "zero_sign": sign}
        for density, scope, normalize, rescale, sign in itertools.product(
            (0.2, 1.0), ("tensor", "row"), (True, False), ("none", "l1"), ("zero", "negative")
        )
    ],
}


def test_every_such_method_is_tested() -> None:
    assert SETTINGS.keys() == module._TRANSPARENT


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_comes_through(method: str, dtype: torch.dtype) -> None:
    """In any input, in two of them at one place, and beside large values of the other sign."""
    spec = get(method)
    kernel = load(spec)
    draw = torch.Generator().manual_seed(0)
    for settings in SETTINGS[method]:
        params = spec.complete({"weight": {"a": 0.5, "b": -0.25}, **settings}, ["a", "b"])
        for first, second, root in itertools.product((*BAD, 3.0), (*BAD, -1e30), (*BAD, 0.5)):
            if not all(map(math.isfinite, (first, second, root))):
                inputs = [torch.randn(4, 6, generator=draw) for _ in range(3)]
                for tensor, value in zip(inputs, (first, second, root), strict=True):
                    tensor[2, 3] = value
                if spec.base != "required" and all(map(math.isfinite, (first, second))):
                    continue
                a, b, base = (tensor.to(dtype) for tensor in inputs)
                context = Context(name="p", source_ids=("a", "b"), dtype=dtype)
                result = kernel([a, b], base if spec.base == "required" else None, params, context)
                assert not torch.isfinite(result).all(), (settings, first, second, root)


@pytest.mark.parametrize(
    "blend",
    [
        {"method": "linear", "weight": {"base": 0.5, "math": 0.9, "ja": 0.3}},
        {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}},
        {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}, "scale": 0.0},
        {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.3},
        {"method": "dare_linear", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.3},
    ],
    ids=["linear", "task_arithmetic", "without scale", "ties", "dare"],
)
@pytest.mark.parametrize("source", ["ja", "base"])
@pytest.mark.parametrize("value", BAD)
def test_the_source_and_its_tensor_are_named(
    blend: dict[str, Any], source: str, value: float, models: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """Whether it takes part, may be dropped by chance, or is left out by a scale of 0."""
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(models / source / "model.safetensors")
    weights[name][3, 5] = value
    save_file(weights, models / source / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(blend, base=None if blend["method"] == "linear" else "base")
    with pytest.raises(SourceError, match=f"source '{source}': tensor '{name}'"):
        list(materialise(plan(recipe, open_sources(recipe, models))))


def test_finite_sources_that_overflow_are_no_fault_of_theirs(models: Path, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe({"method": "task_arithmetic", "weight": {"math": 3e38, "ja": 3e38}})
    with pytest.raises(InfeasibleError, match="NaN or infinite"):
        list(materialise(plan(recipe, open_sources(recipe, models))))
