"""Identity of routes and of merges of merges: scales by their products, copies seen through."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe import Recipe, SourceInfo, identity

SOURCES = {"math": {"model": "m"}, "ja": {"model": "j"}}
INFOS = {alias: SourceInfo(f"hash-{alias}", 3) for alias in SOURCES}
few = settings(max_examples=60, deadline=None)

Hops = list[tuple[str, int, float]]
hops = st.lists(
    st.tuples(st.sampled_from(["math", "ja"]), st.integers(0, 2), st.sampled_from([-0.5, 0.5, 1.0, 2.0])),
    min_size=1,
    max_size=6,
)


def whole(alias: str) -> dict[str, Any]:
    return {"blend": {"method": "linear", "weight": {alias: 1.0}}}


def document(route: Hops, *, first: str = "math", **keys: Any) -> dict[str, Any]:
    return {
        "recipe": 1,
        "sources": SOURCES,
        "tokenizer": {"from": first},
        "layers": [{"take": {alias: layer}, "scale": scale} for alias, layer, scale in route],
        "embeddings": whole(first),
        "head": whole(first),
        **keys,
    }


def of(data: dict[str, Any], infos: dict[str, SourceInfo] = INFOS) -> str:
    return identity(Recipe.from_mapping(data), infos)


def straight(alias: str = "math") -> Hops:
    return [(alias, layer, 1.0) for layer in range(3)]


@few
@given(hops, hops)
def test_routes_are_one_exactly_when_layers_and_products_of_scales_are(one: Hops, other: Hops) -> None:
    def meaning(route: Hops) -> list[tuple[str, int, float]]:
        product, found = 1.0, []
        for alias, layer, scale in route:
            product *= scale
            found.append((alias, layer, product))
        return found

    assert (of(document(one)) == of(document(other))) == (meaning(one) == meaning(other))


def test_scales_of_equal_products_are_one() -> None:
    """0.1·3 and 0.30000000000000004·1 reach the weights as the same number; 0.3·1 does not."""

    def route(first: float, second: float) -> str:
        return of(document([("math", 0, 1.0), ("ja", 1, first), ("math", 2, second)]))

    assert 0.1 * 3.0 != 0.3
    assert of(document([("math", 0, 2.0), ("ja", 1, 0.5)])) != of(document([("math", 0, 1.0), ("ja", 1, 1.0)]))
    assert route(0.1, 3.0) != route(0.3, 1.0)
    assert route(0.7, 1 / 0.7) == route(0.7, 1 / 0.7 * (1 + 2**-53))


def test_a_factor_common_to_all_products_is_not_without_effect() -> None:
    assert of(document([("math", 0, 2.0), ("ja", 1, 1.0)])) != of(document([("math", 0, 1.0), ("ja", 1, 1.0)]))
    assert of(document([("math", 0, -1.0)])) != of(document([("math", 0, 1.0)]))


def test_products_out_of_range_still_have_an_identity() -> None:
    far = [("math", 0, 1e200)] * 3

    assert of(document(far)) == of(document(far))
    assert of(document(far)) != of(document([("math", 0, 1e250)] * 3))


@few
@given(hops)
def test_aliases_and_the_order_of_sources_do_not_count(route: Hops) -> None:
    names = {"math": "b", "ja": "a"}
    renamed = [(names[alias], layer, scale) for alias, layer, scale in route]
    data = document(renamed, first="b", sources={"a": {"model": "j"}, "b": {"model": "m"}})

    assert of(data, {"a": INFOS["ja"], "b": INFOS["math"]}) == of(document(route))


@few
@given(hops, st.sampled_from(["linear", "task_arithmetic"]))
def test_a_blend_of_one_source_is_a_copy(route: Hops, method: str) -> None:
    data = document(route, sources={**SOURCES, "zero": {"model": "z"}})
    infos = {**INFOS, "zero": SourceInfo("hash-zero", 3)}
    for layer in data["layers"]:
        (alias,) = layer["take"]
        layer["blend"] = {"method": method, "weight": {alias: 1.0}}
    data["base"] = "zero"

    assert of(data, infos) == of(document(route))


def test_a_source_of_weight_zero_leaves_a_copy() -> None:
    data = document(straight())
    data["layers"][1] = {"take": {"math": 1, "ja": 2}, "blend": {"method": "linear", "weight": {"math": 0.4, "ja": 0}}}

    assert of(data) == of(document(straight()))


# ---- merges of merges


def nested(inner: dict[str, Any], route: Hops, **keys: Any) -> dict[str, Any]:
    return document(route, first="merged", sources={"merged": {"model": inner}, **SOURCES}, **keys)


BLEND = {"recipe": 1, "sources": SOURCES, "base": "math", "blend": {"method": "dare_linear", "weight": 0.5}}


@few
@given(hops, st.sampled_from(["float32", "bfloat16"]))
def test_what_a_nested_recipe_copies_is_the_source_itself(route: Hops, dtype: str) -> None:
    """The inner recipe is a plain copy; through bfloat16 only what no scale divides is seen."""
    inner = document(straight(), dtype="float32")
    outer = [("merged" if alias == "math" else alias, layer, scale) for alias, layer, scale in route]

    assert of(nested(inner, outer, dtype=dtype)) == of(document(route, dtype=dtype))


def test_what_was_rounded_before_it_is_scaled_is_another_thing() -> None:
    inner = document(straight(), dtype="bfloat16")
    scaled, plain = [("merged", 0, 0.7), ("ja", 1, 1.0)], [("merged", 0, 1.0), ("ja", 1, 1.0)]

    assert of(nested(inner, scaled)) != of(document([("math", 0, 0.7), ("ja", 1, 1.0)]))
    assert of(nested(inner, plain)) == of(document([("math", 0, 1.0), ("ja", 1, 1.0)]))
    assert of(nested(inner, plain, dtype="float32")) != of(
        document([("math", 0, 1.0), ("ja", 1, 1.0)], dtype="float32")
    )


def test_a_copy_of_a_whole_nested_recipe_is_that_recipe() -> None:
    for dtype in ("bfloat16", "float32"):
        inner = {**BLEND, "dtype": dtype, "seed": 4}
        assert of(nested(inner, straight("merged"), dtype=dtype)) == of(inner)
    exact = {**BLEND, "dtype": "float32"}
    assert of(nested(exact, straight("merged"))) == of(BLEND)
    assert of(nested(BLEND, straight("merged"), dtype="float32")) != of(exact)
    assert of(nested(BLEND, [*straight("merged"), ("merged", 2, 1.0)])) != of(BLEND)
    assert of(nested(BLEND, straight("merged"), tokenizer={"from": "ja"})) != of(BLEND)


def test_a_nested_route_with_scales_is_no_copy() -> None:
    inner = document([("math", 0, 1.0), ("math", 1, -0.5), ("math", 2, 1.0)], dtype="float32")

    assert of(nested(inner, [("merged", 1, 1.0)])) != of(
        nested(document(straight(), dtype="float32"), [("merged", 1, 1.0)])
    )
    assert of(nested(inner, [("merged", 0, 1.0)], head=whole("ja"))) == of(
        document([("math", 0, 1.0)], head=whole("ja"))
    )


def test_what_is_known_of_a_nested_recipe_may_be_given_or_found() -> None:
    """A run knows its sources alone; a build has opened the nested recipe too. Both see one identity."""
    outer = nested(BLEND, [("merged", 0, 0.5), ("ja", 1, 1.0)])
    given_hash = {**INFOS, "merged": SourceInfo("recipe:" + of(BLEND), 3)}
    given_inside = {**INFOS, "merged": SourceInfo("recipe:" + of(BLEND), 3, inner=INFOS)}

    assert of(outer) == of(outer, given_hash) == of(outer, given_inside)
    alone = {"merged": given_inside["merged"]}
    data = document(straight("merged"), first="merged", sources={"merged": {"model": BLEND}})
    assert of(data, alone) == of(BLEND)
