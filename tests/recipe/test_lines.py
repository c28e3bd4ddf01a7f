"""LiNeS in recipes: which share holds where, and what it means for a recipe's identity."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, SourceInfo, copied, expand, identity, simplified

PLAIN: dict[str, Any] = {
    "recipe": 1,
    "sources": {"base": {"model": "b"}, "math": {"model": "m"}, "ja": {"model": "j"}},
    "base": "base",
    "blend": {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.5},
}
COPY = {"method": "linear", "weight": {"base": 1.0}}


def infos(depth: int = 3) -> dict[str, SourceInfo]:
    return {alias: SourceInfo(f"hash-{alias}", depth) for alias in PLAIN["sources"]}


def recipe(**keys: Any) -> Recipe:
    return Recipe.from_mapping({**PLAIN, **keys})


def of(depth: int = 3, **keys: Any) -> str:
    return identity(recipe(**keys), infos(depth))


def shares(found: Recipe, depth: int = 3) -> list[float | None]:
    """Of the embeddings, each layer's MLP, and the head."""
    full = expand(found, dict.fromkeys(PLAIN["sources"], depth))
    blends = [full.embeddings, *(layer.blends["mlp"] for layer in full.layers), full.head]
    return [None if blend.lines is None else blend.lines.factor for blend in blends]


def test_the_share_grows_by_layer_and_is_alpha_outside_of_the_layers() -> None:
    assert shares(recipe(lines={"alpha": 0.5, "beta": 0.4})) == pytest.approx([0.5, 0.5, 0.7, 0.9, 0.5])
    assert shares(recipe(lines={"alpha": 0.5, "beta": 0.4}), depth=1) == [0.5, 0.5, 0.5]
    assert shares(recipe(lines={"alpha": 0.6}), depth=2) == [0.6] * 4


def test_depth_is_the_place_in_the_merged_model() -> None:
    layers = [{"take": {"base": 2, "math": 2, "ja": 2}}, {"take": {"base": 0, "math": 1, "ja": 1}}]
    assert shares(recipe(lines={"alpha": 0, "beta": 1}, layers=layers))[1:-1] == [0.0, 1.0]


def test_a_neutral_section_is_no_section() -> None:
    assert of(lines={}) == of(lines={"alpha": 1.0, "beta": 0.0}) == of()
    assert shares(recipe(lines={})) == [None] * 5


def test_nothing_kept_is_the_base() -> None:
    assert of(lines={"alpha": 0}) == of(lines={"alpha": -0.0}) == of(blend=COPY)
    assert of(lines={"alpha": 0, "beta": 0.5}) != of(blend=COPY)


def test_with_one_layer_beta_means_nothing() -> None:
    assert of(1, lines={"alpha": 0.5, "beta": 0.9}) == of(1, lines={"alpha": 0.5})
    assert of(1, lines={"alpha": "auto", "beta": 0.9}) == of(1, lines={"alpha": "auto"}) != of(1)


@pytest.mark.parametrize(
    "lines", [{"alpha": 0.9}, {"beta": 0.1}, {"alpha": "auto"}, {"alpha": "auto", "beta": 0.1}, {"beta": -0.1}]
)
def test_any_other_share_is_another_model(lines: dict[str, Any]) -> None:
    others = ({}, {"alpha": 0.9}, {"beta": 0.1}, {"alpha": "auto"}, {"alpha": "auto", "beta": 0.1}, {"beta": -0.1})
    assert [of(lines=other) == of(lines=lines) for other in others] == [other == lines for other in others]


def test_copies_of_the_base_stay_copies_and_other_copies_do_not() -> None:
    rules = [{"match": "norm", "from": "base"}, {"match": "q_proj", "from": "math"}]
    found = recipe(lines={"alpha": 0.5}, embeddings={"take": ["base", "math"], "blend": COPY}, tensors=rules)
    full = expand(found, dict.fromkeys(PLAIN["sources"], 3))

    assert copied(simplified(full.embeddings)) == "base"
    assert copied(simplified(full.layers[1].rules[0].blends["other"])) == "base"
    assert copied(simplified(full.layers[1].rules[1].blends["attention"])) is None


def test_the_base_is_known_by_its_content() -> None:
    def other(base: str) -> str:
        blend = {"method": "linear", "weight": {"math": 0.7, "ja": 0.3}}
        return of(base=base, lines={"alpha": 0.5}, blend=blend, tokenizer={"from": "ja"})

    assert other("base") != other("math")


def test_a_source_of_weight_0_takes_no_part() -> None:
    weights = {"math": 0.7, "ja": 0.0}
    small = {**PLAIN, "sources": {key: PLAIN["sources"][key] for key in ("base", "math")}}
    for lines in ({"alpha": "auto"}, {"alpha": 0.5}):
        one = recipe(lines=lines, blend={**PLAIN["blend"], "weight": weights})
        other = Recipe.from_mapping({**small, "lines": lines, "blend": {**PLAIN["blend"], "weight": {"math": 0.7}}})
        assert identity(one, infos()) == identity(other, infos())


def test_a_nested_recipe_with_a_share_is_no_copy_of_its_source() -> None:
    inner = {**PLAIN, "blend": {"method": "linear", "weight": {"math": 1.0}}, "dtype": "float32"}
    known = {"inner": SourceInfo("recipe:x", 3, inner=infos())}

    def nested(**keys: Any) -> str:
        return identity(Recipe.from_mapping({"recipe": 1, "sources": {"inner": {"model": {**inner, **keys}}}}), known)

    assert nested(lines={"alpha": 0.5}) != nested()


@given(st.floats(-2, 2) | st.just("auto"), st.floats(-2, 2))
def test_reading_and_writing_are_inverses(alpha: float | str, beta: float) -> None:
    found = recipe(lines={"alpha": alpha, "beta": beta})

    assert Recipe.from_yaml(found.to_yaml()) == found
    assert identity(Recipe.from_yaml(found.to_yaml()), infos()) == identity(found, infos())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"base": None, "blend": {"method": "linear"}}, "lines: needs a base; name it, for instance `base: base`"),
        (
            {"blend": {"method": "linear"}, "layers": [{"take": {"math": 0, "ja": 1}}]},
            r"layers\[0\]\.take: `lines` needs to know from which layer of the base",
        ),
        ({"segments": [{}]}, "lines: cannot stand beside `segments`"),
        ({"lines": {"alpha": "out"}}, "lines.alpha"),
        ({"lines": {"alpha": float("nan")}}, "lines.alpha"),
        ({"lines": {"alfa": 1}}, "unknown key 'alfa'; did you mean 'alpha'"),
    ],
)
def test_what_has_no_meaning_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        recipe(**{"lines": {"alpha": 0.5}, **keys})
