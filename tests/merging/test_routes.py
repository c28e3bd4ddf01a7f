from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import InfeasibleError, NotBuiltError, RecipeError, SourceError
from evomerge.merging import materialise, open_sources, plan
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama

Make = Callable[..., Recipe]
HEAD = {"blend": {"method": "linear", "weight": {"math": 1}}}


@pytest.fixture
def make_route(make_recipe: Make) -> Make:
    """Makes recipes over the siblings from layers alone; embeddings and head are those of `math`."""

    def make(layers: list[dict[str, Any]], **keys: Any) -> Recipe:
        return make_recipe(**{"base": None, "embeddings": HEAD, "head": HEAD, "layers": layers, **keys})

    return make


def change_config(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


class TestPlan:
    def test_layers_are_renamed_and_copied_bit_by_bit(self, models: Path, make_route: Make) -> None:
        recipe = make_route([{"take": {"math": 1}}, {"take": {"ja": 0}}, {"take": {"math": 1}}])
        sources = open_sources(recipe, models)
        merge = plan(recipe, sources)
        found = dict(materialise(merge))

        assert list(found) == sorted(found)
        assert merge.infos.keys() == found.keys()
        assert len(found) == 3 + 3 * 9
        for layer, (alias, taken) in enumerate((("math", 1), ("ja", 0), ("math", 1))):
            for part in ("self_attn.o_proj", "mlp.up_proj", "input_layernorm"):
                name = f"model.layers.{taken}.{part}.weight"
                assert torch.equal(found[f"model.layers.{layer}.{part}.weight"], sources.models[alias].tensor(name))
        assert torch.equal(found["lm_head.weight"], sources.models["math"].tensor("lm_head.weight"))

    def test_sources_may_differ_in_depth(self, models: Path, make_route: Make) -> None:
        write_tiny_llama(models / "ja", seed=5, layers=4)
        recipe = make_route([{"take": {"math": 1}}, {"take": {"ja": 3}}])
        merge = plan(recipe, open_sources(recipe, models))

        assert merge.config()["num_hidden_layers"] == 2
        assert "model.layers.1.mlp.up_proj.weight" in merge.infos

    def test_a_search_opens_sources_of_any_depth_by_a_template_without_layers(
        self, models: Path, make_recipe: Make, make_route: Make
    ) -> None:
        write_tiny_llama(models / "ja", seed=5, layers=4)
        template = make_recipe()
        with pytest.raises(SourceError, match="'base' has 2 layers, 'ja' has 4 layers"):
            open_sources(template, models)
        sources = open_sources(template, models, any_depth=True)
        assert len(plan(make_route([{"take": {"ja": 3}}]), sources).route.hops) == 1

    def test_the_base_of_a_task_vector_may_be_another_layer(self, models: Path, make_recipe: Make) -> None:
        layers = [{"take": {"math": 1, "base": 0}, "blend": {"method": "task_arithmetic", "weight": {"math": 0.5}}}]
        recipe = make_recipe(layers=layers)
        sources = open_sources(recipe, models)
        found = dict(materialise(plan(recipe, sources)))["model.layers.0.mlp.up_proj.weight"]

        math = sources.models["math"].tensor("model.layers.1.mlp.up_proj.weight")
        base = sources.models["base"].tensor("model.layers.0.mlp.up_proj.weight")
        assert torch.allclose(found, base + 0.5 * (math - base))

    def test_a_product_of_scales_of_one_is_no_scale(self, models: Path, make_route: Make) -> None:
        recipe = make_route([{"take": {"math": 0}, "scale": 0.5}, {"take": {"math": 1}, "scale": 2.0}])
        merge = plan(recipe, open_sources(recipe, models))
        assert {tensor.name.split(".")[2] for tensor in merge.tensors if tensor.rescale is not None} == {"0"}

    def test_reads_no_weight(self, models: Path, make_route: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = make_route([{"take": {"math": 1}, "scale": -0.5}, {"take": {"ja": 0}}])
        sources = open_sources(recipe, models)
        assert sources.infos
        monkeypatch.setattr("evomerge.checkpoints.files.WeightFile.tensor", None)
        assert len(plan(recipe, sources).tensors) == 21


class TestRefused:
    def test_a_layer_that_a_source_does_not_have(self, models: Path, make_route: Make) -> None:
        recipe = make_route([{"take": {"math": 2}}])
        with pytest.raises(RecipeError, match=r"layers\.0\.take\.math|layers\[0\]\.take\.math"):
            plan(recipe, open_sources(recipe, models))

    def test_no_layers(self, make_route: Make) -> None:
        with pytest.raises(RecipeError, match="layers"):
            make_route([])

    def test_a_scale_of_zero(self, make_route: Make) -> None:
        with pytest.raises(RecipeError, match="must not be 0, which would erase the stream"):
            make_route([{"take": {"math": 0}, "scale": 0.0}])

    def test_a_product_of_scales_out_of_range(self, models: Path, make_route: Make) -> None:
        recipe = make_route([{"take": {"math": 0}, "scale": 1e-200}] * 2)
        with pytest.raises(InfeasibleError, match=r"layers\[1\]\.scale: the product of the scales up to here is 0"):
            plan(recipe, open_sources(recipe, models))

    def test_layers_that_do_not_fit_each_other(self, models: Path, make_route: Make) -> None:
        """Of models of different depth, already when they are opened."""
        write_tiny_llama(models / "ja", layers=3)
        config = {**json.loads((models / "ja" / "config.json").read_text()), "intermediate_size": 48}
        from evomerge.testing.checkpoints import tiny_llama_tensors, tiny_tokenizer, write_checkpoint

        write_checkpoint(models / "ja", config, tiny_llama_tensors(config), tokenizer=tiny_tokenizer())
        with pytest.raises(
            SourceError,
            match=r"tensor 'mlp.down_proj.weight' of layer 0 has the shape \(16, 32\) in 'base' and \(16, 48\) in 'ja'",
        ):
            open_sources(make_route([{"take": {"math": 0}}]), models)

    @pytest.mark.parametrize(("layer", "scale"), [(1, 1.0), (0, 0.5)])
    def test_an_architecture_that_is_not_understood(
        self, models: Path, make_route: Make, layer: int, scale: float
    ) -> None:
        """Merged one to one it is fine; nobody guesses how its blocks read and write the stream."""
        for name in ("base", "math", "ja"):
            change_config(models / name, model_type="novel")
        plain = make_route([{"take": {"math": 0}}, {"take": {"math": 1}}])
        sources = open_sources(plain, models)
        assert plan(plain, sources).tensors
        with pytest.raises(NotBuiltError, match="blocks of the architecture 'novel'"):
            plan(make_route([{"take": {"math": layer}, "scale": scale}, {"take": {"math": 1}}]), sources)

    def test_sources_of_two_architectures(self, models: Path, make_route: Make) -> None:
        change_config(models / "ja", model_type="mistral")
        recipe = make_route([{"take": {"math": 1}}, {"take": {"ja": 0}}])
        with pytest.raises(SourceError, match="of the architecture 'llama', the other of 'mistral'"):
            plan(recipe, open_sources(recipe, models))

    def test_a_blend_of_two_kinds_of_layers(self, models: Path, make_route: Make) -> None:
        for name in ("base", "math", "ja"):
            change_config(
                models / name,
                model_type="qwen2",
                use_sliding_window=True,
                sliding_window=4,
                layer_types=["full_attention", "sliding_attention"],
            )
        blend = {"method": "linear"}
        recipe = make_route([{"take": {"math": 1, "ja": 0}, "blend": blend}])
        with pytest.raises(SourceError, match=r"layers\[0\]\.take: layer 1 of 'math' is of another kind than layer 0"):
            plan(recipe, open_sources(recipe, models))
        alike = make_route([{"take": {"math": 1, "ja": 1}, "blend": blend}])
        assert plan(alike, open_sources(alike, models)).config()["layer_types"] == ["sliding_attention"]

    def test_a_threshold_over_whole_models(self, models: Path, make_recipe: Make) -> None:
        """It has no meaning where only some layers are taken."""
        ties = {"method": "ties", "weight": 0.5, "density": 0.5, "scope": "global"}
        recipe = make_recipe(ties, layers=[{"take": {"math": 1, "ja": 1}}])
        with pytest.raises(NotBuiltError, match="scope: global"):
            plan(recipe, open_sources(recipe, models))
