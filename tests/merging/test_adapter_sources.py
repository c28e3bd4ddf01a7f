"""Adapters as sources of a merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import SourceError
from evomerge.merging import build, materialise, open_sources, plan
from evomerge.recipe import Recipe, identity, read_recipe
from evomerge.testing.adapters import write_lora

Make = Callable[..., Recipe]
SOURCES = {
    "base": {"model": "base"},
    "math": {"model": "base", "adapter": "lora-math"},
    "ja": {"model": "base", "adapter": "lora-ja"},
}


@pytest.fixture
def adapters(models: Path) -> Path:
    for seed, name in enumerate(("math", "ja"), start=1):
        write_lora(models / f"lora-{name}", models / "base", seed)
    return models


@pytest.fixture
def merged_first(adapters: Path, make_recipe: Make) -> Path:
    """Each adapter written into its model, as one would do without support for adapters."""
    for alias in ("math", "ja"):
        sources = {alias: SOURCES[alias]}
        build(make_recipe({"method": "linear"}, sources=sources, base=None), adapters / f"m-{alias}", base_dir=adapters)
    return adapters


@pytest.mark.parametrize(
    "blend",
    [
        {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}},
        {"method": "ties", "weight": 0.8, "density": 0.5},
    ],
)
@pytest.mark.parametrize("resident", [False, True])
def test_a_merge_equals_that_of_models_written_first(
    merged_first: Path, make_recipe: Make, blend: dict[str, object], resident: bool
) -> None:
    recipe = make_recipe(blend, sources=SOURCES)
    made = dict(materialise(plan(recipe, open_sources(recipe, merged_first, resident=resident))))
    written = {"base": {"model": "base"}, "math": {"model": "m-math"}, "ja": {"model": "m-ja"}}
    other = make_recipe(blend, sources=written)
    expected = dict(materialise(plan(other, open_sources(other, merged_first))))
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_an_adapter_on_a_nested_recipe(adapters: Path, make_recipe: Make) -> None:
    inner = make_recipe().to_mapping()
    sources = {"on": {"model": inner, "adapter": "lora-ja"}, "off": {"model": inner}, "base": {"model": "base"}}
    recipe = make_recipe({"method": "task_arithmetic", "weight": {"on": 1.0, "off": -1.0}}, sources=sources)
    made = dict(materialise(plan(recipe, open_sources(recipe, adapters))))
    alone = make_recipe({"method": "linear"}, sources={"ja": SOURCES["ja"]}, base=None)
    expected = dict(materialise(plan(alone, open_sources(alone, adapters))))
    assert all(torch.allclose(made[name], expected[name], atol=1e-6) for name in expected)


def test_the_same_weights_have_the_same_identity(adapters: Path, make_recipe: Make) -> None:
    """A copied adapter folder is the same source, another adapter another one."""
    (adapters / "copy").mkdir()
    for file in (adapters / "lora-math").iterdir():
        (adapters / "copy" / file.name).write_bytes(file.read_bytes())
    identities = set()
    for adapter in ("lora-math", "copy", "lora-ja"):
        sources = {"base": SOURCES["base"], "math": {"model": "base", "adapter": adapter}}
        recipe = make_recipe({"method": "task_arithmetic"}, sources=sources)
        identities.add(identity(recipe, open_sources(recipe, adapters).infos))
    assert len(identities) == 2


def test_opened_sources_are_used_again(adapters: Path, make_recipe: Make) -> None:
    recipe = make_recipe(sources=SOURCES)
    opened = open_sources(recipe, adapters)
    again = open_sources(make_recipe({"method": "linear"}, sources=SOURCES), adapters, like=opened)
    assert all(again.models[alias] is opened.models[alias] for alias in SOURCES)


def test_a_written_recipe_finds_its_adapters(adapters: Path, tmp_path: Path, make_recipe: Make) -> None:
    out = tmp_path / "elsewhere" / "merged"
    recipe = make_recipe(sources=SOURCES)
    report = build(recipe, out, base_dir=adapters)
    again = build(read_recipe(out / "recipe.yaml"), tmp_path / "again", base_dir=out)
    assert again.recipe_id == report.recipe_id
    first, second = open_checkpoint(out), open_checkpoint(tmp_path / "again")
    assert all(torch.equal(first.tensor(name), second.tensor(name)) for name in first.names())


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"adapter": "none"}, r"sources\.math: adapter 'none': no such folder \(looked in .*\), and not a hub id"),
        ({"adapter": "lora-ja", "adapter_revision": "main"}, r"sources\.math: adapter 'lora-ja': only a hub id has a"),
        ({"adapter": "ja"}, r"sources\.math: .*ja: no adapter_config\.json here"),
    ],
)
def test_a_fault_names_the_alias(adapters: Path, make_recipe: Make, source: dict[str, str], text: str) -> None:
    sources = {**SOURCES, "math": {"model": "base", **source}}
    with pytest.raises(SourceError, match=text):
        open_sources(make_recipe(sources=sources), adapters)


def test_an_adapter_named_as_a_model(adapters: Path, make_recipe: Make) -> None:
    (adapters / "lora-math" / "config.json").write_text((adapters / "base" / "config.json").read_text())
    with pytest.raises(SourceError, match=r"sources\.math: .*name its model as `model` and this folder as `adapter`"):
        open_sources(make_recipe(sources={**SOURCES, "math": {"model": "lora-math"}}), adapters)
