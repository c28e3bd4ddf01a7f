"""mergekit's reading of the files is written here anew, after its documentation, and held against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from evomerge.errors import NotBuiltError
from evomerge.merging import materialise, open_sources, plan, to_mergekit_passthrough
from evomerge.recipe import Recipe
from tests.merging.hops import random_hops, write_tiny

pytestmark = pytest.mark.filterwarnings("ignore")
DEPTHS = {"a": 3, "b": 4}


def route(hops: list[tuple[str, int, float]], **keys: Any) -> Recipe:
    def only(alias: str) -> dict[str, Any]:
        return {"blend": {"method": "linear", "weight": {one: float(one == alias) for one in DEPTHS}}}

    data = {
        "recipe": 1,
        "sources": {alias: {"model": alias} for alias in DEPTHS},
        "dtype": "float32",
        "embeddings": only(hops[0][0]),
        "head": only(hops[-1][0]),
        "layers": [{"take": {alias: layer}, "scale": scale} for alias, layer, scale in hops],
    }
    return Recipe.from_mapping({**data, **keys})


def as_mergekit_does(text: str) -> dict[str, Tensor]:
    """Slices one after the other; the first rule without a filter, or whose filter is part of the name, scales."""
    document = yaml.safe_load(text)
    assert document["merge_method"] == "passthrough"
    slices = [source for piece in document["slices"] for source in piece["sources"]]
    result: dict[str, Tensor] = {}
    index = 0

    def scaled(source: dict[str, Any], name: str, tensor: Tensor) -> Tensor:
        for rule in source.get("parameters", {}).get("scale", []):
            if "filter" not in rule or rule["filter"] in name:
                return tensor * rule["value"]
        return tensor

    for source in slices:
        tensors = load_file(Path(source["model"]) / "model.safetensors")
        for layer in range(*source["layer_range"]):
            for name, tensor in tensors.items():
                if ".layers." in name and int(name.split(".")[2]) == layer:
                    new = name.replace(f".layers.{layer}.", f".layers.{index}.")
                    result[new] = scaled(source, new, tensor)
            index += 1
    for source, part in (
        (slices[0], ("embed_tokens", "embed_in")),
        (slices[-1], ("model.norm", "lm_head", "final_layer_norm", "embed_out")),
    ):
        for name, tensor in load_file(Path(source["model"]) / "model.safetensors").items():
            if ".layers." not in name and any(piece in name for piece in part):
                result[name] = scaled(source, name, tensor)
    return result


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral", "gpt_neox", "olmo2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_means_the_same_route(kind: str, seed: int, tmp_path: Path) -> None:
    for number, (alias, depth) in enumerate(DEPTHS.items()):
        write_tiny(tmp_path / alias, kind, seed=number, layers=depth, tie_word_embeddings=False)
    recipe = route([*random_hops(DEPTHS, 5, seed), ("b", 2, 1.0), ("b", 3, 1.0)])
    merge = plan(recipe, open_sources(recipe, tmp_path))
    found, expected = as_mergekit_does(to_mergekit_passthrough(merge)), dict(materialise(merge))

    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)


def test_one_slice_for_a_run_of_layers_and_short_filters(tmp_path: Path) -> None:
    for alias, depth in DEPTHS.items():
        write_tiny(tmp_path / alias, "llama", seed=1, layers=depth)
    recipe = route([("a", 0, 1.0), ("a", 1, 1.0), ("b", 1, 0.5), ("b", 2, 1.0), ("a", 2, 2.0)])
    document = yaml.safe_load(to_mergekit_passthrough(plan(recipe, open_sources(recipe, tmp_path))))
    a, b = str((tmp_path / "a").resolve()), str((tmp_path / "b").resolve())

    factors = [{"filter": "down_proj", "value": 2.0}, {"filter": "o_proj", "value": 2.0}, {"value": 1.0}]
    assert document["slices"] == [
        {"sources": [{"model": a, "layer_range": [0, 2]}]},
        {"sources": [{"model": b, "layer_range": [1, 3], "parameters": {"scale": factors}}]},
        {"sources": [{"model": a, "layer_range": [2, 3]}]},
    ]


class TestRefused:
    @pytest.fixture
    def models(self, tmp_path: Path) -> Path:
        for number, (alias, depth) in enumerate(DEPTHS.items()):
            write_tiny(tmp_path / alias, "llama", seed=number, layers=depth)
        return tmp_path

    @pytest.mark.parametrize(
        ("keys", "text"),
        [
            ({"head": {"blend": {"method": "linear", "weight": {"a": 1, "b": 0}}}}, "head: .*its last layer's model"),
            ({"embeddings": {"blend": {"method": "linear"}}}, "embeddings: .*its first layer's model"),
            (
                {"layers": [{"take": {"a": 0, "b": 0}, "blend": {"method": "linear"}}]},
                r"layers\[0\]: .*this one blends a, b",
            ),
        ],
    )
    def test_what_it_cannot_say(self, models: Path, keys: dict[str, Any], text: str) -> None:
        recipe = route([("a", 0, 1.0), ("b", 1, 1.0)], **keys)
        with pytest.raises(NotBuiltError, match=text):
            to_mergekit_passthrough(plan(recipe, open_sources(recipe, models)))

    def test_norms_that_are_stored_less_one(self, tmp_path: Path) -> None:
        for number, (alias, depth) in enumerate(DEPTHS.items()):
            write_tiny(tmp_path / alias, "gemma2", seed=number, layers=depth)
        recipe = route([("a", 0, 0.5)])
        with pytest.raises(NotBuiltError, match="cannot scale the norms of 'gemma2', which are stored less 1"):
            to_mergekit_passthrough(plan(recipe, open_sources(recipe, tmp_path)))
