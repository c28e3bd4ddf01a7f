"""Merges of adapters that use their factors, from recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evomerge.checkpoints import AdaptedModel, Adapter, ModelSource, open_checkpoint
from evomerge.errors import RecipeError, SourceError
from evomerge.merging import materialise, open_sources, plan
from evomerge.merging.adapters import build_adapter
from evomerge.recipe import Recipe
from evomerge.testing.adapters import write_lora

Make = Callable[..., Recipe]
SOURCES = {
    "base": {"model": "base"},
    "math": {"model": "base", "adapter": "lora-math"},
    "ja": {"model": "base", "adapter": "lora-ja"},
}
EVO = {"method": "evo_merging", "weight": {"math": 0.7, "ja": -0.4}, "density": {"math": 0.5, "ja": 0.8}}


@pytest.fixture
def adapters(models: Path) -> Path:
    write_lora(models / "lora-math", models / "base", 1, rank=3, modules=("q_proj", "up_proj"))
    write_lora(models / "lora-ja", models / "base", 2, rank=3, modules=("q_proj", "down_proj"))
    return models


def merged(recipe: Recipe, folder: Path, *, resident: bool = False) -> dict[str, torch.Tensor]:
    return dict(materialise(plan(recipe, open_sources(recipe, folder, resident=resident))))


@pytest.mark.parametrize("resident", [False, True])
def test_evo_merging_adds_factors(adapters: Path, make_recipe: Make, resident: bool) -> None:
    made = merged(make_recipe(EVO, sources=SOURCES), adapters, resident=resident)
    base = open_checkpoint(adapters / "base")
    both = {alias: AdaptedModel(base, Adapter(adapters / f"lora-{alias}")) for alias in ("math", "ja")}
    for name, tensor in made.items():
        found = [(both[alias].update(name), weight) for alias, weight in (("math", 0.7), ("ja", -0.4))]
        first = sum(
            weight * torch.where(update.first.abs() >= _limit(update.first, share), update.first, 0.0)
            for (update, weight), share in zip(found, (0.5, 0.8), strict=True)
            if update is not None
        )
        second = sum(weight * update.scale * update.second for update, weight in found if update is not None)
        expected = base.tensor(name).float()
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            expected = expected + second @ first
        assert torch.allclose(tensor, expected, atol=1e-6), name


def _limit(factor: torch.Tensor, share: float) -> torch.Tensor:
    kept = max(1, round(share * factor.numel()))
    return factor.abs().flatten().sort(descending=True).values[kept - 1]


@pytest.mark.parametrize("lines", [None, {"alpha": 0.4, "beta": 0.3}, {"alpha": "auto"}])
def test_its_export_as_an_adapter_has_their_rank(
    adapters: Path, tmp_path: Path, make_recipe: Make, lines: dict[str, Any] | None
) -> None:
    recipe = make_recipe(EVO, sources=SOURCES, lines=lines)
    adapter = build_adapter(recipe, tmp_path / "adapter", base_dir=adapters)
    assert adapter.rank == 3
    model = AdaptedModel(open_checkpoint(adapters / "base"), Adapter(tmp_path / "adapter"))
    for name, tensor in merged(recipe, adapters).items():
        assert torch.allclose(model.tensor(name), tensor, atol=1e-6), name


def test_adapters_of_different_ranks_are_refused(adapters: Path, make_recipe: Make) -> None:
    write_lora(adapters / "lora-ja", adapters / "base", 2, rank=2, modules=("q_proj",))
    recipe = make_recipe(EVO, sources=SOURCES)
    with pytest.raises(SourceError, match=r"q_proj\.weight: evo_merging adds .* have the ranks 2, 3; use adapters of"):
        merged(recipe, adapters)


@pytest.mark.parametrize("source", [{"model": "ja"}, {"model": "ja", "adapter": "lora-ja"}])
def test_a_source_that_is_no_adapter_on_the_base_is_refused(
    adapters: Path, make_recipe: Make, source: dict[str, str]
) -> None:
    recipe = make_recipe(EVO, sources={**SOURCES, "ja": source})
    with pytest.raises(RecipeError, match=r"sources\.ja: method 'evo_merging' adds .* no adapter on the base 'base'"):
        plan(recipe, open_sources(recipe, adapters))


@pytest.mark.parametrize(
    "method", ["tsv_m", "iso_c", "iso_cts", "star", "knots", "knots_dare", "wudi", "swudi", "optmerge"]
)
def test_adapters_and_the_models_they_make_merge_alike(adapters: Path, make_recipe: Make, method: str) -> None:
    """From factors without forming their products, and from the models written first."""
    recipe = make_recipe({"method": method}, sources=SOURCES)
    made = merged(recipe, adapters)
    base, sources = open_checkpoint(adapters / "base"), open_sources(recipe, adapters)
    for alias in ("math", "ja"):
        sources.models[alias] = _Written(sources.models[alias])  # type: ignore[assignment,arg-type]
    for name, tensor in materialise(plan(recipe, sources)):
        size = float((made[name] - base.tensor(name)).abs().max())
        assert torch.allclose(made[name], tensor, atol=1e-4 * size + 1e-7), name


class _Written:
    """A model with an adapter that does not say that it is one."""

    def __init__(self, model: ModelSource) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_gpt2_is_read_as_outputs_by_inputs(tmp_path: Path, make_recipe: Make) -> None:
    """Its `Conv1D` layers are stored transposed: WUDI looks at the inputs of a layer in any case."""
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
    config.update({"eos_token_id": 2})
    for seed, alias in enumerate(("base", "math", "ja")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / alias)
    recipe = make_recipe({"method": "wudi"}, tokenizer={"from": "base"})
    made = merged(recipe, tmp_path)
    stored = {alias: open_checkpoint(tmp_path / alias) for alias in ("base", "math", "ja")}
    name = next(name for name in made if name.endswith("h.0.mlp.c_fc.weight"))
    base = stored["base"].tensor(name).double().T
    tasks = [stored[alias].tensor(name).double().T - base for alias in ("math", "ja")]
    task = made[name].double().T - base
    gradient = sum((task - one) @ one.T @ one / one.square().sum() for one in tasks)
    assert isinstance(gradient, torch.Tensor)
    assert gradient.abs().max() < 1e-5 * task.abs().max()
    embedding = next(name for name in made if name.endswith("wte.weight"))
    mean = sum(source.tensor(embedding) for alias, source in stored.items() if alias != "base") / 2
    assert torch.allclose(made[embedding], torch.as_tensor(mean), atol=1e-6)
