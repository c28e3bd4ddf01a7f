"""Which blend holds where, once overrides are resolved."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import MODULES, Blend, ExpandedRecipe, Recipe, expand

SOURCES = {alias: {"model": alias} for alias in ("base", "math", "ja")}


def expanded(depth: int = 2, **keys: Any) -> ExpandedRecipe:
    recipe = Recipe.from_mapping({"recipe": 1, "sources": SOURCES, "base": "base", **keys})
    return expand(recipe, dict.fromkeys(SOURCES, depth))


def test_layers_left_out_take_every_source_one_to_one() -> None:
    result = expanded(3, blend={"method": "task_arithmetic", "weight": {"math": 0.7}})

    assert [dict(layer.take) for layer in result.layers] == [dict.fromkeys(SOURCES, index) for index in range(3)]
    assert result.layers[0].blends["mlp"] == Blend(
        "task_arithmetic", ("math", "ja"), "base", {"weight": (0.7, 0.0), "scale": 1.0, "normalize": False}
    )
    assert result.embeddings == result.head == result.layers[2].blends["other"]


def test_inner_blends_override_parameter_by_parameter() -> None:
    result = expanded(
        blend={"method": "ties", "weight": 0.5, "density": 0.5},
        modules={"mlp": {"density": 0.4}},
        layers=[
            {"take": {"math": 0, "ja": 0}},
            {
                "take": {"math": 1, "ja": 1},
                "blend": {"weight": {"math": 1}},
                "modules": {"attention": {"scale": 2}, "mlp": {"density": 0.3}},
            },
        ],
        embeddings={"blend": {"density": 1}},
    )

    first, second = (layer.blends for layer in result.layers)
    assert [first[module].params["density"] for module in MODULES] == [(0.5, 0.5), (0.4, 0.4), (0.5, 0.5)]
    assert [second[module].params["density"] for module in MODULES] == [(0.5, 0.5), (0.3, 0.3), (0.5, 0.5)]
    assert [second[module].params["scale"] for module in MODULES] == [2.0, 1.0, 1.0]
    assert {second[module].params["weight"] for module in MODULES} == {(1.0, 0.0)}
    assert result.embeddings.params["density"] == (1.0, 1.0)
    assert result.head.params["density"] == (0.5, 0.5)


def test_another_method_discards_what_it_would_inherit() -> None:
    result = expanded(
        blend={"method": "ties", "weight": 0.3, "density": 0.5},
        modules={"mlp": {"method": "task_arithmetic"}, "other": {"method": "ties", "density": 0.9}},
    )

    blends = result.layers[0].blends
    assert blends["mlp"].params == {"weight": (1.0, 1.0), "scale": 1.0, "normalize": False}
    assert blends["other"].params["weight"] == (0.3, 0.3)


def test_a_base_that_a_layer_does_not_name_is_taken_at_the_depth_of_the_others() -> None:
    result = expanded(blend={"method": "ties"}, layers=[{"take": {"math": 1, "ja": 1}}])

    assert result.layers[0].take == {"base": 1, "math": 1, "ja": 1}
    assert list(result.layers[0].take) == ["base", "math", "ja"]


def test_a_layer_that_takes_one_source_and_says_no_blend_is_a_copy() -> None:
    result = expanded(blend={"method": "ties", "density": 0.1}, layers=[{"take": {"ja": 1}, "scale": 0.9}])

    layer = result.layers[0]
    assert (dict(layer.take), layer.scale) == ({"ja": 1}, 0.9)
    assert {blend.method for blend in layer.blends.values()} == {"linear"}
    assert {blend.sources for blend in layer.blends.values()} == {("ja",)}


def test_one_source_beside_the_base_blends() -> None:
    result = expanded(blend={"method": "ties"}, layers=[{"take": {"ja": 1, "base": 0}}])

    assert result.layers[0].blends["mlp"].sources == ("ja",)
    assert result.layers[0].blends["mlp"].base == "base"
    assert result.layers[0].take == {"base": 0, "ja": 1}


def test_a_layer_ignores_inherited_values_of_sources_that_it_does_not_take() -> None:
    keys = {"blend": {"method": "linear", "weight": {"math": 0.2, "ja": 0.8, "base": 0.5}}}
    result = expanded(**keys, layers=[{"take": {"math": 0, "ja": 1}}])

    assert result.layers[0].blends["mlp"].sources == ("math", "ja")
    assert result.layers[0].blends["mlp"].params["weight"] == (0.2, 0.8)


def test_averages_leave_the_base_out_unless_it_is_named() -> None:
    assert expanded(blend={"method": "linear", "weight": 0.5}).embeddings.sources == ("math", "ja")

    named = expanded(blend={"method": "linear", "weight": {"base": 0.5, "ja": 0.5}}).embeddings
    assert (named.sources, named.base) == (("base", "math", "ja"), None)
    assert named.params["weight"] == (0.5, 0.0, 0.5)


def test_a_single_source_needs_no_blend() -> None:
    recipe = Recipe.from_mapping({"recipe": 1, "sources": {"a": {"model": "m"}}, "layers": [{"take": {"a": 1}}]})
    result = expand(recipe, {"a": 2})

    assert result.embeddings.sources == ("a",)
    assert result.layers[0].take == {"a": 1}


def test_segments_are_expanded_in_order() -> None:
    result = expanded(
        blend={"method": "linear"},
        segments=[{"until": 5, "weight": {"ja": 1}}, {"method": "ties", "density": 1}],
    )

    assert list(result.segments) == ["rest"]
    assert [(segment.until, segment.blend.method) for segment in result.segments["rest"]] == [
        (5, "linear"),
        (None, "ties"),
    ]
    assert all(not layer.blends for layer in result.layers)


def test_groups_that_no_chromosome_names_have_the_blend_of_the_recipe() -> None:
    result = expanded(
        blend={"method": "linear", "weight": 0.5},
        segments={"mlp": [{"until": 5, "weight": {"ja": 1}, "noise": {"7": 0.25, "8": 0.0}}, {}]},
    )

    assert list(result.segments) == ["mlp", "rest"]
    (rest,) = result.segments["rest"]
    assert rest.blend.params["weight"] == (0.5, 0.5)
    assert [dict(segment.noise) for segment in result.segments["mlp"]] == [{7: 0.25}, {}]


def test_layers_beyond_a_source_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"layers\[0\]\.take\.ja: 'ja' has layers 0 to 1, got 2"):
        expanded(2, blend={"method": "linear"}, layers=[{"take": {"math": 0, "ja": 2}}])


def test_sources_of_different_depth_need_their_layers_written() -> None:
    recipe = Recipe.from_mapping({"recipe": 1, "sources": SOURCES, "blend": {"method": "linear"}})
    with pytest.raises(RecipeError, match=r"layers: the sources differ in depth \(base 2, math 3, ja 2\)"):
        expand(recipe, {"base": 2, "math": 3, "ja": 2})
    with pytest.raises(RecipeError, match=r"sources\.ja: the number of layers of this source is not known"):
        expand(recipe, {"base": 2, "math": 3})
