"""The part of a tensor that one rank needs, made alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.fitness.vllm.fingerprints import Fingerprints, sample
from evomerge.fitness.vllm.heads import padded_size
from evomerge.fitness.vllm.windows import Window, is_elementwise, make_window, shape_of, spread
from evomerge.merging import MergePlan, make_tensor, open_sources, plan
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        write_tiny_llama(root / name, seed)
    return root


def merge(folder: Path, method: str, lines: dict[str, Any] | None = None, **params: Any) -> MergePlan:
    recipe = Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {name: {"model": str(folder / name)} for name in ("base", "one", "two")},
            "base": "base",
            "dtype": "bfloat16",
            "layers": [{"take": dict.fromkeys(("base", "one", "two"), 0), "scale": 0.7}],
            "blend": {"method": method, "weight": {"one": 0.3, "two": 0.6}, **params},
            "lines": lines,
        }
    )
    return plan(recipe, open_sources(recipe, folder))


@pytest.mark.parametrize("lines", [None, {"alpha": 0.5}, {"alpha": "auto"}])
@pytest.mark.parametrize("window", [(0, 0, 5), (0, 7, 9), (1, 3, 8)])
def test_a_part_that_is_made_alone_is_that_part_of_the_whole(
    folder: Path, window: Window, lines: dict[str, Any] | None
) -> None:
    """To the last bit, the fold of a scaled stream included, and a share that depends on the whole model."""
    candidate = merge(folder, "task_arithmetic", lines)
    planned = next(item for item in candidate.tensors if item.name.endswith("o_proj.weight"))
    assert is_elementwise(planned)
    made = make_window(candidate, planned, "cpu", window)
    whole = make_tensor(merge(folder, "task_arithmetic", lines), planned)
    assert made.shape == shape_of(tuple(whole.shape), window)
    assert made.dtype == whole.dtype
    assert torch.equal(made, whole.narrow(*window))
    assert torch.equal(spread(made, window, tuple(whole.shape)).narrow(*window), made)
    given = torch.empty_like(made)
    assert make_window(candidate, planned, "cpu", window, out=given).data_ptr() == given.data_ptr()
    assert torch.equal(given, made)


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_what_looks_beyond_single_elements_is_not_made_in_parts(folder: Path, method: str) -> None:
    """Thresholds are of whole tensors; random masks are drawn for whole tensors."""
    assert not any(is_elementwise(item) for item in merge(folder, method, density=0.5).tensors if item.step)


def test_fingerprints_tell_tensors_apart_and_know_equal_ones() -> None:
    values = torch.arange(5000.0)
    prints = Fingerprints()
    tensors = {"a": values, "b": values.clone(), "c": values.nextafter(torch.tensor(9e9)), "empty": torch.empty(0)}
    for name, tensor in tensors.items():
        prints.add(name, sample(tensor, torch.float32))
    found = prints.values()
    assert found["a"] == found["b"] != found["c"]


def test_a_fingerprint_is_of_what_the_model_holds() -> None:
    """Not of what it was rounded from."""
    values = torch.linspace(0, 1, 5000)
    assert torch.equal(sample(values, torch.bfloat16), sample(values.bfloat16(), torch.bfloat16))


def test_heads_are_padded_to_the_next_size_that_the_kernel_has() -> None:
    assert [padded_size(size, [32, 64, 80]) for size in (8, 32, 33, 80, 81)] == [32, 32, 64, 80, 81]
