"""The part that one rank needs: seen from how loaders use tensors, and made alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.fitness.vllm.fingerprints import Fingerprints
from evomerge.fitness.vllm.heads import padded_size
from evomerge.fitness.vllm.windows import Window, WindowRecorder, is_elementwise, make_window
from evomerge.merging import MergePlan, make_tensor, open_sources, plan
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama

SHAPE = (6, 4)


def seen(use: Any) -> Window | None:
    """Return what a recorder says of a tensor that is used so."""
    tensor = torch.zeros(SHAPE)
    with WindowRecorder() as recorder:
        recorder.watch("name", tensor)
        use(tensor)
    return recorder.windows().get("name")


def test_one_cut_is_a_window() -> None:
    assert seen(lambda tensor: torch.empty(2, 4).copy_(tensor.narrow(0, 2, 2))) == (0, 2, 2)
    assert seen(lambda tensor: tensor.narrow(dim=1, start=0, length=3)) == (1, 0, 3)
    assert seen(lambda tensor: (tensor.shape, tensor.size(0), tensor.dtype, tensor.narrow(0, 0, 3))) == (0, 0, 3)


def test_what_is_done_with_a_tensor_that_is_no_longer_watched_does_not_count() -> None:
    tensor = torch.zeros(SHAPE)
    with WindowRecorder() as recorder:
        recorder.watch("name", tensor)
        tensor.narrow(0, 0, 2)
        recorder.rest()
        tensor.sum()
    assert recorder.windows() == {"name": (0, 0, 2)}


@pytest.mark.parametrize(
    "use",
    [
        lambda tensor: torch.empty(SHAPE).copy_(tensor),
        lambda tensor: tensor.narrow(0, 0, 6),
        lambda tensor: (tensor.narrow(0, 0, 2), tensor.narrow(0, 2, 2)),
        lambda tensor: (tensor.narrow(0, 0, 2), tensor.sum()),
        lambda tensor: tensor.t().narrow(0, 0, 2),
        lambda tensor: tensor.data.narrow(0, 0, 2),
        lambda tensor: tensor[:2],
        lambda tensor: None,
    ],
)
def test_any_other_use_needs_the_whole_tensor(use: Any) -> None:
    assert seen(use) is None


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
    assert made.shape == whole.shape
    assert made.dtype == whole.dtype
    assert torch.equal(made.narrow(*window), whole.narrow(*window))


@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_what_looks_beyond_single_elements_is_not_made_in_parts(folder: Path, method: str) -> None:
    """Thresholds are of whole tensors; random masks are drawn for whole tensors."""
    assert not any(is_elementwise(item) for item in merge(folder, method, density=0.5).tensors if item.step)


def test_fingerprints_tell_tensors_apart_and_know_equal_ones() -> None:
    values = torch.arange(5000.0)
    prints = Fingerprints()
    prints.add("a", values)
    prints.add("b", values.clone())
    prints.add("c", values.nextafter(torch.tensor(9e9)))
    prints.add("empty", torch.empty(0))
    found = prints.values()
    assert found["a"] == found["b"] != found["c"]


def test_heads_are_padded_to_the_next_size_that_the_kernel_has() -> None:
    assert [padded_size(size, [32, 64, 80]) for size in (8, 32, 33, 80, 81)] == [32, 32, 64, 80, 81]
