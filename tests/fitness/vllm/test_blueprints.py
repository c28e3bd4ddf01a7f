"""Digests of what tensors are made of: equal exactly where the tensors are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.fitness.vllm.blueprints import blueprint, summary
from evomerge.merging import Sources, materialise, open_sources, plan
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        write_tiny_llama(root / name, seed, layers=3)
    return root


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return open_sources(recipe(folder), folder, any_depth=True)


def recipe(folder: Path, **keys: Any) -> Recipe:
    named = {name: {"model": str(folder / name)} for name in ("base", "one", "two")}
    blend = {"method": "ties", "weight": {"one": 0.7, "two": 0.4}, "density": 0.5}
    return Recipe.from_mapping(
        {"recipe": 1, "sources": named, "base": "base", "dtype": "float32", "blend": blend, **keys}
    )


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one digit": {"blend": {"method": "ties", "weight": {"one": 0.7000000001, "two": 0.4}, "density": 0.5}},
    "one module": {"modules": {"mlp": {"density": 0.25}}},
    "the head": {"head": {"blend": {"method": "linear", "weight": {"one": 1.0, "two": 1.0}}}},
    "a scale": {"layers": [{"take": dict.fromkeys(("base", "one", "two"), i), "scale": 1 - i / 8} for i in range(3)]},
    "an order": {"layers": [{"take": dict.fromkeys(("base", "one", "two"), i)} for i in (0, 2, 1)]},
    "a method": {"blend": {"method": "dare_linear", "weight": {"one": 0.7, "two": 0.4}, "density": 0.5}},
    "a seed": {"blend": {"method": "dare_linear", "weight": {"one": 0.7, "two": 0.4}, "density": 0.5}, "seed": 5},
    "a dtype": {"dtype": "float16"},
    "a share": {"lines": {"alpha": 1.0, "beta": 0.5}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_digest_changes_wherever_the_tensor_does(name: str, folder: Path, sources: Sources) -> None:
    """It may change where the tensor happens to stay; here that is rounding in float32 and masks that keep all."""
    before, after = plan(recipe(folder), sources), plan(recipe(folder, **CHANGES[name]), sources)
    old, new = blueprint(before), blueprint(after)
    tensors = dict(materialise(before))
    for key, tensor in materialise(after):
        if old[key] == new[key]:
            assert tensor.dtype == tensors[key].dtype
            assert torch.equal(tensor, tensors[key])
    changed = {key for key in new if old[key] != new[key]}
    assert bool(changed) == (name != "nothing")
    if name == "one module":
        assert all(".mlp." in key for key in changed)
    if name == "the head":
        assert changed == {"lm_head.weight", "model.norm.weight"}
    if name == "a share":
        assert all(".layers.1." in key or ".layers.2." in key for key in changed)


def test_a_share_that_depends_on_the_whole_model_changes_with_any_part_of_it(folder: Path, sources: Sources) -> None:
    lines = {"alpha": "auto"}
    before, after = (plan(recipe(folder, lines=lines, **CHANGES[name]), sources) for name in ("nothing", "the head"))
    old, new = blueprint(before), blueprint(after)
    assert all(old[key] != new[key] for key in new)
    assert blueprint(plan(recipe(folder, lines=lines), sources)) == old


def test_a_digest_does_not_depend_on_where_files_are_but_on_what_they_hold(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    moved = recipe(tmp_path / "moved")
    here = blueprint(plan(recipe(folder), open_sources(recipe(folder), folder)))
    assert blueprint(plan(moved, open_sources(moved, tmp_path))) == here
    write_tiny_llama(tmp_path / "moved" / "two", 9, layers=3)
    other = blueprint(plan(moved, open_sources(moved, tmp_path)))
    assert all(other[key] != here[key] for key in here)


def test_a_summary_does_not_depend_on_the_order() -> None:
    assert summary({"a": "1", "b": "2"}) == summary({"b": "2", "a": "1"}) != summary({"a": "2", "b": "1"})
