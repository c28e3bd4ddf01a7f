"""Piecewise blends: planned, materialised and exported, against sums over the flat index."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from evomerge.errors import NotBuiltError, RecipeError
from evomerge.merging import Sources, build, materialise, open_sources, plan, to_mergekit_passthrough
from evomerge.merging.flat import FlatTensor, flat_index, flat_parts, part_size
from evomerge.merging.grams import block_grams
from evomerge.operators.noise import noise
from evomerge.recipe import Recipe
from evomerge.spaces import Grams
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, write_checkpoint, write_tiny_llama

Make = Callable[..., Recipe]
LINEAR = {"method": "linear", "normalize": False}


def merged(recipe: Recipe, sources: Sources) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in materialise(plan(recipe, sources))}


def flat(tensors: dict[str, Tensor]) -> NDArray[np.float32]:
    return np.concatenate([tensors[name].reshape(-1).numpy() for name in sorted(tensors)])


def stored(models: Path, alias: str) -> NDArray[np.float64]:
    return flat(load_file(models / alias / "model.safetensors")).astype(np.float64)


@pytest.fixture
def sources(models: Path, make_recipe: Make) -> Sources:
    return open_sources(make_recipe(), models)


class TestFlatIndex:
    def test_it_has_every_weight_once_by_name(self, models: Path, sources: Sources) -> None:
        tensors = load_file(models / "base" / "model.safetensors")
        index = flat_index(sources.models["base"])
        assert [tensor.name for tensor in index] == sorted(tensors)
        assert [tensor.start for tensor in index] == np.cumsum([0, *(t.size for t in index)]).tolist()[:-1]
        assert all(tensor.size == tensors[tensor.name].numel() for tensor in index)
        groups = {tensor.name: tensor.group for tensor in index}
        assert groups["model.embed_tokens.weight"] == "embeddings"
        assert groups["lm_head.weight"] == groups["model.norm.weight"] == "head"
        assert groups["model.layers.1.self_attn.o_proj.weight"] == "attention"
        assert groups["model.layers.1.mlp.up_proj.weight"] == "mlp"
        assert groups["model.layers.1.input_layernorm.weight"] == "other"

    def test_a_tied_head_counts_once(self, tmp_path: Path) -> None:
        write_tiny_llama(tmp_path / "tied", tied=True)
        recipe = Recipe.from_mapping({"recipe": 1, "sources": {"tied": {"model": "tied"}}})
        names = [tensor.name for tensor in flat_index(open_sources(recipe, tmp_path).models["tied"])]
        assert "model.embed_tokens.weight" in names
        assert "lm_head.weight" not in names

    def test_chromosomes_share_out_all_tensors_and_rest_has_what_is_not_named(self) -> None:
        index = [FlatTensor("a", "mlp", 0, 3), FlatTensor("b", "head", 3, 4), FlatTensor("c", "mlp", 7, 5)]
        parts = flat_parts(index, ["mlp"])
        assert {name: [tensor.name for tensor in each] for name, each in parts.items()} == {
            "mlp": ["a", "c"],
            "rest": ["b"],
        }
        assert part_size(parts["mlp"]) == 8
        assert list(flat_parts(index, ["head", "mlp"])) == ["mlp", "head"]
        assert list(flat_parts(index, [])) == ["rest"]


class TestPieces:
    def test_cuts_inside_tensors_blend_each_side_by_itself(
        self, models: Path, sources: Sources, make_recipe: Make
    ) -> None:
        base, math, ja = (stored(models, alias) for alias in ("base", "math", "ja"))
        ends, rows = (
            [1, 700, 701, 3000, len(base)],
            [(1, 0, 0), (0, 1, 0), (0.25, 0.5, 0.25), (0, 0, 2), (-1, 0.5, 1.5)],
        )
        segments = [
            {"until": end, "weight": dict(zip(("base", "math", "ja"), row, strict=True))}
            for end, row in zip(ends, rows, strict=True)
        ]
        del segments[-1]["until"]
        found = flat(merged(make_recipe(LINEAR, segments=segments), sources))
        each = np.repeat(np.array(rows, dtype=np.float64), np.diff([0, *ends]), axis=0)
        expected = each[:, 0] * base + each[:, 1] * math + each[:, 2] * ja
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * np.abs(expected).max())
        np.testing.assert_array_equal(found[1:700], math[1:700].astype(np.float32))

    def test_each_chromosome_counts_its_own_weights(self, models: Path, sources: Sources, make_recipe: Make) -> None:
        segments = {
            "mlp": [{"until": 600, "weight": {"ja": 1}}, {"weight": {"math": 1}}],
            "rest": [{"weight": {"base": 1}}],
        }
        found = merged(make_recipe(LINEAR, segments=segments), sources)
        tensors = {alias: load_file(models / alias / "model.safetensors") for alias in ("base", "math", "ja")}
        names = [name for name in sorted(found) if ".mlp." in name]
        row = {alias: torch.cat([each[name].reshape(-1) for name in names]) for alias, each in tensors.items()}
        expected = torch.cat([row["ja"][:600], row["math"][600:]])
        torch.testing.assert_close(torch.cat([found[name].reshape(-1) for name in names]), expected, rtol=0, atol=0)
        for name in set(found) - set(names):
            torch.testing.assert_close(found[name], tensors["base"][name], rtol=0, atol=0)

    def test_tensors_within_one_piece_are_planned_whole_and_copies_stay_copies(
        self, sources: Sources, make_recipe: Make
    ) -> None:
        segments = [{"until": 5000, "weight": {"math": 1}}, {"weight": {"math": 0.5, "ja": 0.5}}]
        planned = plan(make_recipe(LINEAR, segments=segments), sources).tensors
        cut = [tensor for tensor in planned if tensor.stretches]
        assert len(cut) == 1
        assert (cut[0].stretches[0].start, cut[0].stretches[0].copied_from) == (0, "math")
        assert cut[0].stretches[-1].stop == cut[0].info.num_elements
        before = planned[: planned.index(cut[0])]
        assert before
        assert all(tensor.copied_from == "math" for tensor in before)
        assert all(tensor.step is not None for tensor in planned[planned.index(cut[0]) + 1 :])

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_one_piece_is_the_same_as_the_blend_bit_by_bit(
        self, sources: Sources, make_recipe: Make, dtype: str
    ) -> None:
        blend = {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}}
        whole = merged(make_recipe(blend, dtype=dtype), sources)
        pieces = merged(
            make_recipe(blend, dtype=dtype, segments=[{"until": 1111, "scale": 1.0}, {"until": 2000}, {}]), sources
        )
        other = merged(
            make_recipe(blend, dtype=dtype, segments=[{"until": 1111}, {"until": 2000, "scale": 2.0}, {}]), sources
        )
        for name, tensor in whole.items():
            torch.testing.assert_close(pieces[name], tensor, rtol=0, atol=0)
        first, second = (flat({name: tensor.float() for name, tensor in each.items()}) for each in (whole, other))
        np.testing.assert_array_equal(first[:1111], second[:1111])
        np.testing.assert_array_equal(first[2000:], second[2000:])
        assert (first[1111:2000] != second[1111:2000]).any()

    def test_noise_is_added_by_the_place_of_a_weight_in_the_whole_model(
        self, models: Path, sources: Sources, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.import_module("evomerge.merging.materialise"), "NOISE_SPAN", 100)
        segments = {"mlp": [{"until": 600, "weight": {"ja": 1}}, {"weight": {"math": 1}, "noise": {"5": 0.5, "6": 2}}]}
        found = merged(make_recipe({**LINEAR, "weight": {"base": 1}}, segments=segments), sources)
        math = load_file(models / "math" / "model.safetensors")
        index = {tensor.name: tensor for tensor in flat_index(sources.models["base"])}
        place = index["model.layers.1.mlp.up_proj.weight"]
        drawn = 0.5 * noise(5, place.start, place.start + place.size) + 2 * noise(
            6, place.start, place.start + place.size
        )
        expected = math[place.name].reshape(-1).numpy() + drawn
        np.testing.assert_allclose(found[place.name].reshape(-1).numpy(), expected, rtol=0, atol=1e-6)

    def test_a_checkpoint_is_built_from_pieces(
        self, tmp_path: Path, models: Path, sources: Sources, make_recipe: Make
    ) -> None:
        recipe = make_recipe(LINEAR, segments=[{"until": 1000, "weight": {"math": 1}}, {"weight": {"ja": 1}}])
        report = build(recipe, tmp_path / "out", base_dir=models)
        written = load_file(tmp_path / "out" / "model.safetensors")
        for name, tensor in merged(recipe, sources).items():
            torch.testing.assert_close(written[name], tensor, rtol=0, atol=0)
        again = Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text())
        assert again.segments == recipe.segments
        assert report.recipe_id in (tmp_path / "out" / "recipe.yaml").read_text()


class TestFaults:
    @pytest.mark.parametrize(
        ("keys", "text"),
        [
            ({"segments": [{"until": 9_000_000}, {}]}, r"segments\[0\]\.until: must lie below 5,\d+, .* got 9,000,000"),
            (
                {"segments": {"mlp": [{"until": 5}, {"until": 9000}, {}]}},
                r"segments\.mlp\[1\]\.until: must lie below 3,072, the number of weights of chromosome 'mlp'",
            ),
        ],
    )
    def test_ends_beyond_the_model(self, sources: Sources, make_recipe: Make, keys: dict[str, Any], text: str) -> None:
        with pytest.raises(RecipeError, match=text):
            plan(make_recipe({"method": "linear", "weight": 1}, **{**keys, **_differing(keys)}), sources)

    def test_a_chromosome_without_weights(self, tmp_path: Path) -> None:
        config = tiny_llama_config(tied=True)
        for seed, name in enumerate("ab"):
            tensors = tiny_llama_tensors(config, seed)
            del tensors["model.norm.weight"]
            write_checkpoint(tmp_path / name, config, tensors)
        data = {"recipe": 1, "sources": {name: {"model": name} for name in "ab"}, "blend": {"method": "linear"}}
        sources = open_sources(Recipe.from_mapping(data), tmp_path)
        segments = {"head": [{"weight": {"a": 1}}], "mlp": [{"until": 3, "weight": {"a": 1}}, {}]}
        with pytest.raises(RecipeError, match=r"segments\.head: the model has no weights in chromosome 'head'"):
            plan(Recipe.from_mapping({**data, "segments": segments}), sources)
        del segments["head"]
        assert plan(Recipe.from_mapping({**data, "segments": segments}), sources).tensors

    def test_methods_that_look_beyond_single_weights(self, sources: Sources, make_recipe: Make) -> None:
        with pytest.raises(NotBuiltError, match=r"segments: method 'ties' looks beyond single weights.*`linear`"):
            plan(make_recipe({"method": "ties"}, segments=[{"until": 9, "density": 0.3}, {"density": 0.6}]), sources)

    def test_a_mergekit_file_of_pieces(self, sources: Sources, make_recipe: Make) -> None:
        recipe = make_recipe(LINEAR, segments=[{"until": 1000, "weight": {"math": 1}}, {"weight": {"ja": 1}}])
        with pytest.raises(
            NotBuiltError, match=r"segments: a mergekit passthrough .* export a checkpoint or the recipe"
        ):
            to_mergekit_passthrough(plan(recipe, sources))


def _differing(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the segments with a blend of its own in each, so that none are joined."""

    def each(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**segment, "weight": {"math": 1, "ja": number + 1}} for number, segment in enumerate(segments)]

    segments = keys["segments"]
    return {"segments": {k: each(v) for k, v in segments.items()} if isinstance(segments, dict) else each(segments)}


def test_grams_of_opened_sources_are_those_of_their_flat_weights(models: Path, sources: Sources) -> None:
    heard: list[int] = []

    class Ear:
        def start(self, title: str, total_bytes: int) -> None:
            heard.append(total_bytes)

        def advance(self, num_bytes: int) -> None:
            heard.append(-num_bytes)

        def finish(self) -> None:
            heard.append(0)

    aliases = ("base", "math", "ja")
    found = Grams.of_blocks(aliases, block_grams(sources, aliases, progress=Ear()))
    expected = Grams.of_vectors(aliases, {"rest": [stored(models, alias).astype(np.float32) for alias in aliases]})
    assert found.digest == expected.digest
    assert sum(heard) == 0
    assert heard[0] == 4 * 3 * found.chromosomes[0].size
    named = Grams.of_blocks(aliases, block_grams(sources, aliases, ("mlp", "head")))
    assert [part.name for part in named.chromosomes] == ["mlp", "head", "rest"]
    total = np.diff(named.prefix[named.offsets, 0], axis=0).sum(axis=0)
    np.testing.assert_allclose(total, found.prefix[-1, 0], rtol=1e-12)
