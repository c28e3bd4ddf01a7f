"""Merges of adapters that are adapters themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evomerge.checkpoints import AdaptedModel, Adapter, open_checkpoint
from evomerge.errors import ConfigError, NotBuiltError, SourceError
from evomerge.merging import build, materialise, open_sources, plan
from evomerge.merging.adapters import as_adapter, build_adapter
from evomerge.recipe import Recipe, read_recipe
from evomerge.testing.adapters import write_lora
from evomerge.testing.checkpoints import write_tiny_llama

Make = Callable[..., Recipe]
EXACT = 1e-5
"""On logits of about 5, in float32."""
SOURCES = {
    "base": {"model": "base"},
    "math": {"model": "base", "adapter": "lora-math"},
    "ja": {"model": "base", "adapter": "lora-ja"},
}
ARITHMETIC = {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}}


@pytest.fixture
def adapters(models: Path) -> Path:
    write_lora(models / "lora-math", models / "base", 1, rank=3, modules=("q_proj", "up_proj"))
    write_lora(models / "lora-ja", models / "base", 2, rank=2, modules=("q_proj", "down_proj"))
    return models


@pytest.fixture
def make(make_recipe: Make) -> Make:
    return lambda blend=None, **keys: make_recipe(blend or ARITHMETIC, **{"sources": SOURCES, **keys})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 23)[None]).logits
    return result


def adapted_logits(model: Path, adapter: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are missing, or that no module takes
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return logits(PeftModel.from_pretrained(loaded, str(adapter)))


def difference(recipe: Recipe, models: Path, out: Path) -> float:
    """Return how far the logits of the merged checkpoint are from those of the model with the merged adapter."""
    build_adapter(recipe, out / "adapter", base_dir=models)
    build(recipe, out / "merged", base_dir=models)
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    model = next(iter(recipe.sources.values())).model
    assert isinstance(model, str)
    return (adapted_logits(models / model, out / "adapter") - logits(merged)).abs().max().item()


class TestAsPeftLoadsIt:
    @pytest.mark.parametrize(
        ("blend", "keys"),
        [
            (ARITHMETIC, {}),
            ({"method": "task_arithmetic", "weight": {"math": -0.7, "ja": 0.0}, "scale": 1.5}, {}),
            ({"method": "task_arithmetic", "weight": 0.8, "normalize": True}, {}),
            ({"method": "linear", "weight": {"base": 0.2, "math": 0.5, "ja": 0.3}}, {"base": None}),
            ({"method": "linear", "weight": {"base": 0.0, "math": 1.0, "ja": 0.0}}, {"base": None}),
            ({"method": "linear", "weight": {"base": -0.5, "math": 1.0, "ja": 0.5}, "normalize": False}, {}),
            ({"method": "task_arithmetic", "weight": {"math": 0.7, "base": 0.1}}, {"base": "ja"}),
            ({"method": "task_arithmetic", "weight": {"math": 0.7}}, {"base": "ja", "lines": {"alpha": 0.5}}),
            (ARITHMETIC, {"lines": {"alpha": "auto", "beta": 0.4}}),
        ],
        ids=[
            *("arithmetic", "scaled", "normalised", "linear", "a copy", "not normalised", "an adapter as the base"),
            *("drawn towards an adapter", "more by depth"),
        ],
    )
    def test_methods(
        self, adapters: Path, tmp_path: Path, make: Make, blend: dict[str, Any], keys: dict[str, Any]
    ) -> None:
        assert difference(make(blend, **keys), adapters, tmp_path) < EXACT

    def test_weights_that_differ_by_layer_and_module(self, adapters: Path, tmp_path: Path, make: Make) -> None:
        layers = [
            {"take": {"math": 0, "ja": 0}, "blend": {"weight": {"math": 0.1, "ja": 0.9}}},
            {"take": {"math": 1, "ja": 1}, "modules": {"mlp": {"weight": {"math": 0.0, "ja": 0.0}}}},
        ]
        recipe = make(layers=layers)
        assert difference(recipe, adapters, tmp_path) < EXACT
        targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
        assert "model.layers.0.mlp.up_proj" in targets
        assert not any("layers.1.mlp" in target for target in targets)

    def test_gpt2_and_an_embedding(self, tmp_path: Path, make: Make) -> None:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1)
        config.update({"eos_token_id": 2, "tie_word_embeddings": False})
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
        for alias in ("math", "ja"):
            model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
            lora = LoraConfig(
                task_type="CAUSAL_LM", r=2, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True
            )
            trained = get_peft_model(model, lora)
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT says that it saves the embedding
                trained.save_pretrained(tmp_path / f"lora-{alias}")
        assert difference(make(tokenizer={"from": "base"}), tmp_path, tmp_path / "out") < EXACT

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
    def test_the_update_is_that_of_the_merge(
        self, adapters: Path, tmp_path_factory: pytest.TempPathFactory, make: Make, weights: tuple[float, float]
    ) -> None:
        weight = {"math": weights[0] or 1.0, "ja": weights[1]}
        recipe = make({"method": "task_arithmetic", "weight": weight})
        merge = plan(recipe, open_sources(recipe, adapters))
        out = tmp_path_factory.mktemp("out") / "adapter"
        build_adapter(recipe, out, base_dir=adapters)
        model = AdaptedModel(open_checkpoint(adapters / "base"), Adapter(out))
        for name, tensor in materialise(merge):
            assert torch.allclose(model.tensor(name), tensor, atol=1e-5)


class TestRank:
    def test_it_is_the_sum_of_the_ranks(self, adapters: Path, make: Make) -> None:
        recipe = make()
        assert as_adapter(plan(recipe, open_sources(recipe, adapters))).rank == 5

    def test_dependent_factors_are_reduced(self, adapters: Path, tmp_path: Path, make: Make) -> None:
        """Twice the same adapter needs no more than its rank, and no digit is lost."""
        recipe = make(sources={**SOURCES, "ja": {**SOURCES["math"]}})
        merge = plan(recipe, open_sources(recipe, adapters))
        assert [as_adapter(merge, smallest=smallest).rank for smallest in (True, False)] == [3, 6]
        assert difference(recipe, adapters, tmp_path) < EXACT

    def test_one_rank_and_scale_1_hold_for_all(self, adapters: Path, tmp_path: Path, make: Make) -> None:
        build_adapter(make(), tmp_path / "adapter", base_dir=adapters)
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {5}
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 5
        assert config["target_modules"] == ["down_proj", "q_proj", "up_proj"]


class TestFolder:
    def test_it_holds_what_it_is_made_from(self, adapters: Path, tmp_path: Path, make: Make) -> None:
        out = tmp_path / "elsewhere" / "adapter"
        build_adapter(make(), out, base_dir=adapters, card="# A card\n")
        assert {path.name for path in out.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "recipe.yaml",
            "README.md",
        }
        model = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert (out / model).resolve() == (adapters / "base").resolve()
        recipe = read_recipe(out / "recipe.yaml")
        merge = dict(materialise(plan(recipe, open_sources(recipe, out))))
        exported = AdaptedModel(open_checkpoint(adapters / "base"), Adapter(out))
        assert all(torch.allclose(exported.tensor(name), merge[name], atol=1e-6) for name in merge)

    def test_nothing_is_overwritten(self, adapters: Path, make: Make) -> None:
        with pytest.raises(ConfigError, match="not empty"):
            build_adapter(make(), adapters / "lora-ja", base_dir=adapters)


class TestRefused:
    """With the reason, and what to do."""

    @pytest.mark.parametrize(
        ("blend", "keys", "text"),
        [
            ({"method": "ties", "density": 0.5}, {}, r"blend\.method: 'ties' is not linear in the task vectors"),
            (
                {"method": "linear", "weight": 0.4, "normalize": False},
                {},
                r"blend\.weight: at 'lm_head\.weight' the weights sum to 0\.8 instead of 1",
            ),
            ({"method": "task_arithmetic", "weight": 0.0}, {}, "the merge is the model itself, with no adapter"),
            (
                ARITHMETIC,
                {"layers": [{"take": {"math": 0, "ja": 0}}, {"take": {"math": 1, "ja": 1}, "scale": 0.5}]},
                "layers: layers that are moved or scaled",
            ),
            (
                None,
                {"segments": [{"until": 9, "method": "linear"}, {"method": "task_arithmetic"}]},
                "segments: .* blends in pieces",
            ),
        ],
    )
    def test_no_low_rank_update(
        self, adapters: Path, blend: dict[str, Any] | None, keys: dict[str, Any], text: str
    ) -> None:
        recipe = Recipe.from_mapping(
            {
                "recipe": 1,
                "sources": SOURCES,
                "base": "base",
                "dtype": "float32",
                **({"blend": blend} if blend else {}),
                **keys,
            }
        )
        with pytest.raises(NotBuiltError, match=f"{text}.*so this merge is no LoRA adapter; write it as a checkpoint"):
            as_adapter(plan(recipe, open_sources(recipe, adapters)))

    def test_adapters_on_different_models(self, adapters: Path, make: Make) -> None:
        recipe = make(sources={**SOURCES, "ja": {"model": "ja", "adapter": "lora-ja"}})
        with pytest.raises(SourceError, match="'base' and 'ja' are not adapters on one model"):
            as_adapter(plan(recipe, open_sources(recipe, adapters)))

    def test_a_copied_model_is_the_same_model(self, adapters: Path, make: Make) -> None:
        write_tiny_llama(adapters / "again", 0)
        recipe = make(sources={**SOURCES, "ja": {"model": "again", "adapter": "lora-ja"}})
        assert as_adapter(plan(recipe, open_sources(recipe, adapters))).rank == 5

    def test_adapters_on_a_recipe(self, adapters: Path, make_recipe: Make, make: Make) -> None:
        inner = make_recipe().to_mapping()
        sources = {"base": {"model": inner}, "math": {"model": inner, "adapter": "lora-math"}}
        recipe = make({"method": "task_arithmetic"}, sources=sources)
        with pytest.raises(NotBuiltError, match=r"sources\.base\.model: an adapter needs a model with a name"):
            as_adapter(plan(recipe, open_sources(recipe, adapters)))

    def test_a_module_that_is_replaced_as_a_whole(self, adapters: Path, make: Make) -> None:
        model = AutoModelForCausalLM.from_pretrained(adapters / "base", dtype=torch.float32)
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        trained = get_peft_model(model, lora)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        trained.save_pretrained(adapters / "whole")
        recipe = make(sources={**SOURCES, "ja": {"model": "base", "adapter": "whole"}})
        merge = plan(recipe, open_sources(recipe, adapters))
        with pytest.raises(NotBuiltError, match=r"sources\.ja\.adapter: it replaces 'lm_head.weight' as a whole"):
            as_adapter(merge)
