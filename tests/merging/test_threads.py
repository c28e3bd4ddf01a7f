"""Tensors made by several threads."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import SourceError
from evomerge.merging import materialise, open_sources, plan
from evomerge.merging.threads import in_order, torch_threads
from evomerge.recipe import Recipe

# The package's name for it is the function.
materialise_module = importlib.import_module("evomerge.merging.materialise")


@pytest.fixture(autouse=True)
def _own_number_of_threads() -> Iterator[None]:
    own = torch.get_num_threads()
    yield
    torch.set_num_threads(own)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    late = threading.Event()

    def made(item: int) -> int:
        if item == 0 and num_threads > 1:
            assert late.wait(10)  # the first is made last
        if item == 1:
            late.set()
        return item * item

    assert list(in_order(made, range(7), num_threads)) == [item * item for item in range(7)]


def test_each_thread_is_alone_and_pytorch_is_as_before_afterwards() -> None:
    torch.set_num_threads(2)
    found = set(in_order(lambda item: (torch.get_num_threads(), threading.get_ident()), range(20), 2))
    assert {count for count, _ in found} == {1}
    assert threading.get_ident() not in {ident for _, ident in found}
    assert torch.get_num_threads() == 2
    other: list[int] = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [2]


def test_one_thread_is_the_callers() -> None:
    assert set(in_order(lambda item: threading.get_ident(), range(3), 1)) == {threading.get_ident()}
    assert list(in_order(str, [], 4)) == []


def test_an_error_comes_when_its_item_is_due() -> None:
    def made(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = in_order(made, range(50), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_pytorch_has_its_own_number_of_threads_back_after_a_block_even_if_it_fails() -> None:
    torch.set_num_threads(3)
    seen = []

    def fail() -> None:
        seen.append(torch.get_num_threads())
        raise ValueError("in it")

    with pytest.raises(ValueError, match="in it"), torch_threads(1):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("waiting", [0, 5])
def test_so_many_results_wait_while_the_caller_is_busy(waiting: int) -> None:
    """Besides one for each thread."""
    made: list[int] = []
    enough = threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if len(made) == 1 + 2 + waiting:
            enough.set()
        return item

    results = in_order(make, range(100), 2, waiting=waiting)
    next(results)
    assert enough.wait(10)
    results.close()  # type: ignore[attr-defined]
    assert len(made) == 1 + 2 + waiting


def test_no_more_than_a_few_are_made_ahead_and_none_after_the_end() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item

    results = in_order(make, range(100), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(made) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]


METHODS = [
    {"method": "linear", "weight": {"base": 0.5, "math": 0.9, "ja": 0.3}},
    {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}},
    {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.4},
    {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.4, "scope": "global"},
    {"method": "dare_ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.4, "rescale": "l1"},
]


@pytest.mark.parametrize("blend", METHODS, ids=lambda blend: f"{blend['method']}-{blend.get('scope', 'tensor')}")
def test_a_merge_has_the_same_bits_with_any_number_of_threads(
    blend: dict[str, Any], models: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialise_module, "_LARGE", 0)
    made = []
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        recipe = make_recipe(blend)
        made.append(list(materialise(plan(recipe, open_sources(recipe, models)))))
    for other in made[1:]:
        assert [name for name, _ in other] == [name for name, _ in made[0]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(made[0], other, strict=True))


def test_a_source_that_is_not_finite_is_named(
    models: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialise_module, "_LARGE", 0)
    torch.set_num_threads(2)
    weights = load_file(models / "ja" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, models / "ja" / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe()
    with pytest.raises(SourceError, match=r"source 'ja': tensor 'model.layers.1.mlp.up_proj.weight'"):
        list(materialise(plan(recipe, open_sources(recipe, models))))
