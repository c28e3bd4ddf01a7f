from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import RecipeError, SourceError
from evomerge.merging import open_sources, plan
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama

Make = Callable[..., Recipe]


class TestOpening:
    @pytest.mark.parametrize(("sizes", "text"), [({"layers": 3}, "layers"), ({"hidden": 8}, "hidden size")])
    def test_sources_that_do_not_fit(self, models: Path, make_recipe: Make, sizes: dict[str, int], text: str) -> None:
        write_tiny_llama(models / "ja", **sizes)
        with pytest.raises(SourceError, match=f"'base' and 'ja' do not fit each other: .*{text}"):
            open_sources(make_recipe(), models)

    def test_a_fault_names_the_alias(self, models: Path, make_recipe: Make) -> None:
        file = models / "math" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(SourceError, match=r"sources\.math: .*model\.safetensors: not a whole safetensors file"):
            open_sources(make_recipe(), models)

    def test_a_nested_recipe_must_fit_too(self, tmp_path: Path, models: Path, make_recipe: Make) -> None:
        write_tiny_llama(models / "deep", layers=3)
        inner = {"recipe": 1, "sources": {"deep": {"model": "deep"}}}
        sources = {"base": {"model": "base"}, "odd": {"model": inner}}
        with pytest.raises(SourceError, match="'base' has 2 layers, 'odd' has 3 layers"):
            open_sources(make_recipe(sources=sources, blend={"method": "linear"}), models)

    def test_heads_must_be_laid_out_alike(self, models: Path, make_recipe: Make) -> None:
        """Shapes do not show it: 2 heads of 8 have the projections of 4 heads of 4 each."""
        file = models / "ja" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 4}))
        with pytest.raises(SourceError, match="num_attention_heads is 2 in 'base' and 4 in 'ja'"):
            open_sources(make_recipe(), models)

    def test_infos_are_content_hashes_and_depths(self, models: Path, make_recipe: Make) -> None:
        """A nested recipe's is its identity: equal recipes are equal sources."""
        inner = make_recipe(base=None, blend={"method": "linear", "weight": {"math": 1, "ja": 1}}).to_mapping()
        turned = {**inner, "sources": dict(reversed(inner["sources"].items()))}
        sources = {"base": {"model": "base"}, "one": {"model": inner}, "two": {"model": turned}}
        infos = open_sources(make_recipe(sources=sources, blend={"method": "linear"}), models).infos

        assert infos["one"] == infos["two"]
        assert infos["one"].content_hash.startswith("recipe:")
        assert len(infos["base"].content_hash) == 64
        assert {info.num_layers for info in infos.values()} == {2}


class TestPlan:
    def test_a_candidate_has_the_sources_that_were_opened(self, models: Path, make_recipe: Make) -> None:
        sources = open_sources(make_recipe(), models)
        swapped = {"base": {"model": "base"}, "math": {"model": "ja"}, "ja": {"model": "math"}}
        with pytest.raises(RecipeError, match=r"sources\.math: this is not the source that was opened"):
            plan(make_recipe(sources=swapped), sources)

    def test_a_candidate_may_use_some_of_the_sources(self, models: Path, make_recipe: Make) -> None:
        sources = open_sources(make_recipe(), models)
        fewer = {name: {"model": name} for name in ("base", "ja")}

        assert len(plan(make_recipe(sources=fewer, blend={"method": "slerp"}), sources).tensors) == 21

    def test_sources_of_weight_zero_are_not_read(self, models: Path, make_recipe: Make) -> None:
        recipe = make_recipe(
            {"method": "ties", "weight": {"math": 0.5, "ja": 0.0}, "density": {"math": 0.3, "ja": 0.9}}
        )
        found = plan(recipe, open_sources(recipe, models))

        for planned in found.tensors:
            assert planned.step is not None
            assert planned.step.blend.sources == ("math",)
            assert planned.step.blend.params["density"] == (0.3,)

    def test_reads_no_weight(self, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once the content hashes are known."""
        sources = open_sources(make_recipe(), models)
        assert sources.infos
        monkeypatch.setattr("evomerge.checkpoints.files.WeightFile.tensor", None)

        assert plan(make_recipe(), sources).num_bytes == sum(
            info.num_bytes for info in plan(make_recipe(), sources).infos.values()
        )
