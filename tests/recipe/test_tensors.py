"""Blends of single tensors by pattern, parts that take some of the sources, and bases of single blends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, SourceInfo, blend_of, copied, expand, identity, simplified
from evomerge.recipe.patterns import matches

DEPTHS = {"base": 2, "math": 2, "ja": 2}
INFOS = {alias: SourceInfo(alias * 8, 2) for alias in DEPTHS}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def recipe(**keys: Any) -> Recipe:
    data = {
        "recipe": 1,
        "sources": {alias: {"model": alias} for alias in DEPTHS},
        "base": "base",
        "blend": {"method": "task_arithmetic", "weight": 0.5},
        **keys,
    }
    return Recipe.from_mapping(data)


def weight_at(found: Recipe, name: str, module: Any) -> Any:
    layer = expand(found, DEPTHS).layers[1]
    return blend_of(name, module, layer.rules, layer.blends[module]).params["weight"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("layers.1", True),
        ("*_proj", True),
        ("layers.*.self_attn", True),
        ("weight", True),
        ("_proj", False),
        ("layers.10", False),
        ("layers", True),
        ("q_proj.bias", False),
        ("model.self_attn", False),
        ("q.proj", False),
    ],
)
def test_a_pattern_is_a_run_of_dotted_parts(pattern: str, matched: bool) -> None:
    assert matches((pattern,), Q_PROJ) is matched


@given(st.lists(st.text("ab_1", min_size=1, max_size=3), min_size=1, max_size=5), st.data())
def test_every_run_of_parts_matches_its_name(parts: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(parts) - 1))
    stop = data.draw(st.integers(start + 1, len(parts)))
    assert matches((".".join(parts[start:stop]),), ".".join(parts))


def test_the_first_match_counts_and_that_of_the_layer_before_that_of_the_recipe() -> None:
    found = recipe(
        tensors=[
            {"match": "q_proj", "blend": {"weight": 0.1}},
            {"match": ["self_attn", "*norm*"], "blend": {"weight": 0.2}},
        ],
        layers=[
            {"take": {"math": 0, "ja": 0}},
            {"take": {"math": 1, "ja": 1}, "tensors": [{"match": "*layernorm", "blend": {"weight": 0.3}}]},
        ],
    )
    assert weight_at(found, Q_PROJ, "attention") == (0.1, 0.1)
    assert weight_at(found, "model.layers.1.self_attn.k_proj.weight", "attention") == (0.2, 0.2)
    assert weight_at(found, NORM, "other") == (0.3, 0.3)
    assert weight_at(found, "model.layers.1.mlp.up_proj.weight", "mlp") == (0.5, 0.5)


def test_tensors_can_be_taken_from_one_source_as_they_are() -> None:
    found = recipe(tensors=[{"match": ["embed_tokens", "lm_head", "*norm*"], "from": "base"}])
    expanded = expand(found, DEPTHS)
    (head,), (layer,) = expanded.head_rules, expanded.layers[0].rules
    assert copied(simplified(head.blends["head"])) == "base"
    assert copied(simplified(layer.blends["other"])) == "base"


def test_tensors_can_be_taken_from_a_source_that_the_place_leaves_out() -> None:
    """From the depth on which the sources of the layer agree; parts outside of the layers have none."""
    found = recipe(
        tensors=[{"match": ["q_proj", "embed_tokens"], "from": "ja"}],
        embeddings={"take": ["base", "math"]},
        layers=[{"take": {"base": 1, "math": 1}}, {"take": {"math": 0}, "tensors": [{"match": "*norm", "from": "ja"}]}],
    )
    expanded = expand(found, DEPTHS)
    assert expanded.embeddings.sources == ("math",)
    assert copied(simplified(expanded.embedding_rules[0].blends["embeddings"])) == "ja"
    first, second = expanded.layers
    assert (dict(first.take), first.blends["mlp"].sources) == ({"base": 1, "math": 1, "ja": 1}, ("math",))
    assert copied(simplified(first.rules[0].blends["attention"])) == "ja"
    assert (dict(second.take), copied(second.blends["mlp"])) == ({"math": 0, "ja": 0}, "math")
    assert copied(simplified(second.rules[0].blends["other"])) == "ja"
    assert identity(found, INFOS) != identity(
        recipe(layers=[{"take": {"base": 1, "math": 1}}, {"take": {"math": 0}}]), INFOS
    )


def test_a_layer_that_copies_a_source_stays_a_copy() -> None:
    found = recipe(
        tensors=[{"match": "q_proj", "blend": {"weight": 0.1}}],
        layers=[{"take": {"math": 0}}, {"take": {"math": 1, "ja": 1}}],
    )
    copy, merged = expand(found, DEPTHS).layers
    assert copy.rules == ()
    assert len(merged.rules) == 1


def test_a_part_takes_the_sources_that_it_names() -> None:
    found = recipe(embeddings={"take": ["ja"]}, head={"take": ["base", "math"], "blend": {"method": "slerp", "t": 0.2}})
    expanded = expand(found, DEPTHS)
    assert copied(expanded.embeddings) == "ja"
    assert (expanded.head.base, expanded.head.sources) == ("base", ("math",))


def test_a_blend_may_have_a_base_of_its_own() -> None:
    found = recipe(layers=[{"take": {"math": 0, "ja": 0}, "blend": {"method": "slerp", "base": "ja", "t": 0.3}}])
    layer = expand(found, DEPTHS).layers[0]
    assert (layer.blends["mlp"].base, layer.blends["mlp"].sources) == ("ja", ("math",))
    assert dict(layer.take) == {"math": 0, "ja": 0}


def test_another_method_discards_the_base_that_it_would_inherit() -> None:
    blends = {"blend": {"method": "slerp", "base": "ja", "t": 0.3}}
    found = recipe(
        **blends,
        head={"blend": {"method": "ties"}},
        embeddings={"take": ["ja", "math"]},
        layers=[
            {"take": {"math": 0, "ja": 0}},
        ],
    )
    assert expand(found, DEPTHS).head.base == "base"
    assert expand(found, DEPTHS).embeddings.base == "ja"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tensors": [{"match": "q_proj"}]}, "tensors[0]: give exactly one of `blend` and `from`"),
        ({"tensors": [{"match": "q..proj", "from": "base"}]}, "tensors[0].match: 'q..proj' is no pattern"),
        ({"tensors": [{"match": [], "from": "base"}]}, "tensors[0].match: give at least one pattern"),
        ({"tensors": [{"match": "q_proj", "from": "maths"}]}, "did you mean 'math'?"),
        (
            {
                "layers": [{"take": {"math": 0, "base": 1}, "blend": {"method": "linear", "weight": {"math": 1}}}],
                "tensors": [{"match": "q_proj", "from": "ja"}],
            },
            "layers[0].take: single tensors come from a layer of 'ja', and the sources differ in depth here; say which",
        ),
        ({"tensors": [{"match": "q_proj", "blend": {"weigth": 1}}]}, "tensors[0].blend.weigth: method"),
        ({"tensors": [{"match": "q_proj", "blned": {}}]}, "did you mean 'blend'?"),
        ({"embeddings": {"take": ["maths"]}}, "embeddings.take[0]: 'maths' is not a source"),
        ({"blend": {"method": "ties", "base": "maths"}}, "blend.base: 'maths' is not a source"),
        ({"blend": {"method": "linear", "base": "math"}}, "blend.base: method 'linear' takes no base"),
        ({"segments": [{"weight": 1.0}], "tensors": [{"match": "q", "from": "base"}]}, "tensors: cannot stand beside"),
        ({"tokenizer": {"from": "base", "tokens": {"<x>": {"from": "maths"}}}}, "tokenizer.tokens.<x>.from: 'maths'"),
        (
            {"tokenizer": {"from": "base", "tokens": {"<x>": {"zero": True, "from": "math"}}}},
            "one of `from` and `zero`",
        ),
        ({"tokenizer": {"from": "base", "tokens": {"<x>": {"token": "a"}}}}, "`token` needs `from`"),
    ],
)
def test_what_is_wrong_is_said_with_its_key_path(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**keys)
    assert text in str(caught.value)


def test_rules_round_trip_through_yaml() -> None:
    found = recipe(tensors=[{"match": "q_proj", "blend": {"weight": 0.1}}, {"match": ["k", "v"], "from": "ja"}])
    assert Recipe.from_yaml(found.to_yaml()) == found


def test_rules_count_in_the_identity_by_pattern_and_blend() -> None:
    def of(*rules: dict[str, Any]) -> str:
        return identity(recipe(tensors=list(rules)), INFOS)

    plain = identity(recipe(), INFOS)
    one = of({"match": ["q_proj", "k_proj"], "blend": {"weight": 0.1}})
    assert (
        len({plain, one, of({"match": "q_proj", "blend": {"weight": 0.1}}), of({"match": "q_proj", "from": "ja"})}) == 4
    )
    assert one == of({"match": ["k_proj", "q_proj"], "blend": {"weight": {"math": 0.1, "ja": 0.1}}})


def test_a_model_with_rules_is_no_copy_of_its_source() -> None:
    copy = {"blend": {"method": "linear", "weight": {"math": 1.0}}}
    rules = {"tensors": [{"match": "q_proj", "from": "ja"}]}
    assert identity(recipe(**copy), INFOS) != identity(recipe(**copy, **rules), INFOS)


def test_rules_for_tokens_count_in_the_identity() -> None:
    plain, other = ({"tokenizer": {"from": "base", **more}} for more in ({}, {"tokens": {"<x>": {"zero": True}}}))
    assert identity(recipe(**plain), INFOS) != identity(recipe(**other), INFOS)
