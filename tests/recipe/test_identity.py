"""Identity on hand-written cases: what must agree, and what must not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, SourceInfo, canonical, identity

PLAIN: dict[str, Any] = {
    "recipe": 1,
    "sources": {"base": {"model": "b"}, "math": {"model": "m"}, "ja": {"model": "j"}},
    "base": "base",
    "blend": {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.5},
}
INFOS = {alias: SourceInfo(f"hash-{alias}", 2) for alias in PLAIN["sources"]}


def of(infos: dict[str, SourceInfo] = INFOS, **keys: Any) -> str:
    return identity(Recipe.from_mapping({**PLAIN, **keys}), infos)


def test_it_is_the_sha256_of_the_compact_canonical_json() -> None:
    form = canonical(Recipe.from_mapping(PLAIN), INFOS)
    text = json.dumps(form, sort_keys=True, separators=(",", ":"))

    assert of() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "keys",
    [
        {"dtype": "float32"},
        {"blend": {**PLAIN["blend"], "density": 0.5000000000000001}},
        {"blend": {**PLAIN["blend"], "weight": {"math": 0.4, "ja": 0.7}}},
        {"blend": {**PLAIN["blend"], "normalize": False}},
        {"blend": {**PLAIN["blend"], "scope": "row"}},
        {"blend": {**PLAIN["blend"], "method": "dare_ties"}},
        {"head": {"blend": {"density": 0.6}}},
        {"embeddings": {"blend": {"density": 0.6}}},
        {"modules": {"other": {"density": 0.6}}},
        {"tokenizer": {"from": "ja"}},
        {"tokenizer": {"union": ["base", "ja"]}},
        {"layers": [{"take": {"math": 0, "ja": 0}}]},
        {"layers": [{"take": {"math": 0, "ja": 0}}, {"take": {"math": 1, "ja": 1, "base": 0}}]},
        {"layers": [{"take": {"math": 0, "ja": 0}}, {"take": {"math": 1, "ja": 1}, "scale": 0.5}]},
        {"segments": [{"until": 9}, {"density": 0.6}]},
        {"segments": [{"noise": {"3": 0.1}}]},
    ],
)
def test_what_changes_the_weights_changes_it(keys: dict[str, Any]) -> None:
    assert of(**keys) != of()


def test_the_content_of_a_source_counts_and_its_name_does_not() -> None:
    moved = {alias: {"model": f"elsewhere/{alias}"} for alias in PLAIN["sources"]}

    assert of(sources=moved) == of()
    assert of({**INFOS, "ja": SourceInfo("hash-other", 2)}) != of()
    assert of({**INFOS, "base": SourceInfo("hash-other", 2)}) != of()


def test_a_source_of_weight_zero_is_no_source() -> None:
    without = {"weight": {"math": 0.7}, "density": {"math": 0.5, "ja": 0.2}}
    other = {**INFOS, "ja": SourceInfo("hash-other", 2)}

    assert of(blend={**PLAIN["blend"], **without}) == of(other, blend={**PLAIN["blend"], **without})
    assert of(blend={**PLAIN["blend"], "weight": {"math": 0.7, "ja": -0.0}}) == of(blend={**PLAIN["blend"], **without})


def test_task_vectors_of_weight_zero_leave_the_base_whatever_the_method() -> None:
    ties = of(blend={"method": "ties", "weight": 0, "density": 0.3})

    assert ties == of(blend={"method": "dare_linear", "weight": 0}, seed=7)
    assert ties == of(blend={"method": "linear", "weight": {"base": 1}})


def test_the_seed_counts_only_for_random_methods() -> None:
    assert of(seed=1) == of()
    dare = {"method": "dare_ties"}
    assert of(blend=dare, seed=1) != of(blend=dare)
    assert of(modules={"mlp": dare}, seed=1) != of(modules={"mlp": dare})


def test_a_written_tokenizer_of_the_base_is_the_default() -> None:
    assert of(tokenizer={"from": "base"}) == of()


def test_equal_neighbouring_segments_are_one() -> None:
    one = of(segments=[{"until": 9, "density": 0.3}, {"density": 0.6}])

    assert one == of(segments=[{"until": 4, "density": 0.3}, {"until": 9, "density": 0.3}, {"density": 0.6}])
    assert one != of(segments=[{"until": 8, "density": 0.3}, {"density": 0.6}])


MIX: dict[str, Any] = {"blend": {"method": "linear", "normalize": False}}
"""Piecewise mixtures have no densities; the pieces say their weights."""
ONE, TWO = {"weight": {"math": 0.3, "ja": 0.7}}, {"weight": {"ja": 1.0}}


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ([{"until": 9, **ONE}, TWO], {"rest": [{"until": 9, **ONE}, TWO]}),
        ([{"until": 9, **ONE}, TWO], [{"until": 4, **ONE}, {"until": 9, **ONE}, {"until": 12, **TWO}, TWO]),
        (
            [{"until": 9, **ONE}, TWO],
            [{"until": 9, "weight": {"base": 0, "math": 0.3, "ja": 0.7}, "noise": {"1": 0}}, TWO],
        ),
        (
            {"mlp": [{"until": 9, **ONE}, TWO], "rest": [ONE]},
            {"mlp": [{"until": 9, **ONE}, TWO], "head": [ONE], "rest": [ONE]},
        ),
        (
            {"mlp": [{"until": 9, **ONE}, TWO], "rest": [ONE]},
            {
                "rest": [{"until": 9, **ONE}, TWO],
                **{name: [ONE] for name in ("attention", "other", "embeddings", "head")},
            },
        ),
        (
            [{"noise": {"1": 0.5, "2": 0.25}, **ONE}],
            {"head": [{"noise": {2: 0.25, 1: 0.5}, **ONE}], "rest": [{"noise": {"1": 0.5, "2": 0.25}, **ONE}]},
        ),
    ],
)
def test_equal_pieces_have_one_identity_however_they_are_written(written: Any, same: Any) -> None:
    assert of(**MIX, segments=written) == of(**MIX, segments=same)
    assert of(**MIX, segments=written) != of(**MIX, segments=[ONE])


def test_pieces_that_cover_whole_groups_are_the_same_as_layers_that_say_so() -> None:
    assert of(segments=[{"until": 5}, {"density": 0.5}]) == of()
    layers = {"modules": {"mlp": TWO}, "head": {"blend": TWO}}
    blend = {**MIX["blend"], **ONE}
    assert of(blend=blend, segments={"mlp": [TWO], "head": [TWO], "rest": [{}]}) == of(blend=blend, **layers)
    assert of(blend=blend, segments={"mlp": [TWO], "head": [TWO]}) == of(blend=blend, **layers)
    assert of(**MIX, segments=[{"until": 7, **TWO}, TWO]) == of(blend={"method": "linear", "weight": {"ja": 2}})


def test_a_nested_recipe_counts_by_its_identity() -> None:
    inner = Recipe.from_mapping(PLAIN)
    nested = {**PLAIN["sources"], "ja": {"model": inner.to_mapping()}}
    first = {**INFOS, "ja": SourceInfo("recipe:" + identity(inner, INFOS), 2)}
    changed = Recipe.from_mapping({**PLAIN, "dtype": "float16"})
    second = {**INFOS, "ja": SourceInfo("recipe:" + identity(changed, INFOS), 2)}

    assert of(first, sources=nested) != of(second, sources=nested)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"sources\.ja: nothing is known of the content of this source"):
        of({alias: info for alias, info in INFOS.items() if alias != "ja"})
