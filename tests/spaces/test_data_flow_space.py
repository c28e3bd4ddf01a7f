"""The data-flow space: slots, routes, and genomes that come back from recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig, TokenizerConfig, expand
from evomerge.search import CmaEsOptions, genome_from_unit
from evomerge.spaces import DataFlowSpace, Genome, SpaceConfig, Value, create_space
from evomerge.spaces.encodings import START_SIGMA
from evomerge.spaces.routes import Hop, Route

SOURCES = {alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "math", "ja")}
DEPTHS = {"base": 3, "math": 4, "ja": 2}
ENCODINGS = ("paper", "hop_scales", "network", "mixed")
few = settings(max_examples=30, deadline=None)


def space(
    *, depths: Mapping[str, int] = DEPTHS, tokenizer: TokenizerConfig | None = None, **keys: Any
) -> DataFlowSpace:
    found = create_space(
        SpaceConfig.model_validate({"kind": "data_flow", **keys}),
        sources={alias: SOURCES[alias] for alias in depths},
        base="base" if "base" in depths else None,
        num_layers=depths,
        dtype="float32",
        tokenizer=tokenizer,
    )
    assert isinstance(found, DataFlowSpace)
    return found


def genome(found: DataFlowSpace, **named: Value) -> Genome:
    """Return the start, all slots but the named ones dropped."""
    values = []
    for dimension in found.dimensions:
        key = dimension.name.replace("/", "_").replace(".", "")
        dropped = -1.0 if dimension.name.startswith("keep/") else dimension.default
        values.append(named.pop(key, dropped))
    assert not named
    return tuple(values)


def layers(route: Route) -> list[str]:
    return [f"{hop.alias}{hop.layer}" for hop in route]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[DataFlowSpace, Genome]:
    """Any space over two or three sources, and a genome of it."""
    aliases = draw(st.permutations(list(DEPTHS)))[: draw(st.integers(2, 3))]
    keys: dict[str, Any] = {
        "encoding": draw(st.sampled_from(ENCODINGS)),
        "order": aliases,
        "repeats": draw(st.integers(1, 3)),
        "scales": draw(st.sampled_from(["fixed", [0.5, 1.5]])),
        "max_hops": draw(st.none() | st.integers(2, 12)),
        "initial_keep": draw(st.sampled_from([0.5, 0.1])),
    }
    depths = {alias: draw(st.integers(1, 4)) for alias in DEPTHS}
    found = space(depths=depths, **keys)
    seed = draw(st.randoms(use_true_random=False))
    return found, genome_from_unit(found, [seed.random() for _ in found.dimensions])


# ---- all encodings


@few
@given(drawn())
def test_every_genome_is_a_route_within_its_limits(case: tuple[DataFlowSpace, Genome]) -> None:
    found, values = case
    route = found.route(values)
    recipe = found.decode(values)
    config_layers = recipe.layers or ()
    first = route[0].alias
    last = max(hop.layer for hop in route if hop.alias == first)

    assert (route[0].layer, route[-1].alias, route[-1].layer) == (0, first, last)
    assert [(layer.take, layer.scale) for layer in config_layers] == [
        ({hop.alias: hop.layer}, hop.scale) for hop in route
    ]
    assert all(0.5 <= hop.scale <= 1.5 for hop in route)
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.from_ == first
    expanded = expand(recipe, dict.fromkeys(recipe.sources, 4))
    assert all(
        blend.sources == (hop.alias,)
        for hop, layer in zip(route, expanded.layers, strict=True)
        for blend in layer.blends.values()
    )
    for blend in (expanded.embeddings, expanded.head):
        weights = blend.params["weight"]
        assert isinstance(weights, tuple)
        assert [alias for alias, weight in zip(blend.sources, weights, strict=True) if weight] == [first]


@few
@given(drawn())
def test_encode_is_a_right_inverse_of_decode(case: tuple[DataFlowSpace, Genome]) -> None:
    found, values = case
    recipe = found.decode(values)
    if any(hop.scale != 1 for hop in found.route(values)) and "network/0" in [d.name for d in found.dimensions]:
        with pytest.raises(ConfigError, match="cannot be written as weights of a network"):
            found.encode(recipe)
        return

    assert found.decode(found.encode(recipe)) == recipe
    assert found.decode(found.encode(Recipe.from_yaml(recipe.to_yaml()))) == recipe


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_start_is_model_a_and_comes_back(encoding: str) -> None:
    found = space(encoding=encoding)

    assert found.route(found.start) == tuple(Hop("base", layer) for layer in range(3))
    assert found.encode(found.decode(found.start)) == found.start


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_are_unique_and_conditions_come_first(encoding: str) -> None:
    names = [dimension.name for dimension in space(encoding=encoding).dimensions]
    conditions = [dimension.active_when for dimension in space(encoding=encoding).dimensions]

    assert len(set(names)) == len(names)
    assert all(when is None or names.index(when[0]) < index for index, when in enumerate(conditions))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_fixed_scales_leave_only_the_choice_of_slots(encoding: str) -> None:
    found = space(encoding=encoding, scales="fixed")

    assert not [d.name for d in found.dimensions if not d.name.startswith(("keep/", "source/"))]


# ---- the paper's


def test_the_paper_has_its_dimensions() -> None:
    """Two models of 32 layers, three repetitions and the full matrix: 192 + 64²."""
    found = space(depths={"math": 32, "ja": 32}, encoding="paper")

    assert len(found.dimensions) == 4288


def test_the_papers_start_is_two_standard_deviations_in_the_unit_cube() -> None:
    found = space(encoding="paper")
    units = [d.to_unit(value) - 0.5 for d, value in zip(found.dimensions, found.start, strict=True)]

    assert CmaEsOptions().sigma == START_SIGMA
    assert units[:27] == pytest.approx([2 * START_SIGMA] * 3 + [0.0] * 24)
    assert set(found.start[27:]) == {1.0}


def test_fewer_slots_may_be_kept_at_first() -> None:
    indicators = space(initial_keep=0.1587).start[:27]
    keep = space().dimensions[5]

    assert keep.to_unit(indicators[5]) == pytest.approx(0.5 - START_SIGMA, abs=1e-4)


def test_a_route_goes_through_the_kept_slots_in_order_and_repeats_layers() -> None:
    found = space(order=["math", "ja"], repeats=2, scales="fixed")
    route = found.route(genome(found, keep_0_math1=0.1, keep_0_ja0=1.0, keep_1_math1=0.5, keep_1_ja1=0.2))

    assert layers(route) == ["math0", "math1", "ja0", "math1", "ja1", "math3"]


def test_the_end_is_appended_only_where_the_route_does_not_end_there() -> None:
    found = space(order=["ja", "math"], repeats=2, scales="fixed")

    assert layers(found.route(genome(found))) == ["ja0", "ja1"]
    assert layers(found.route(genome(found, keep_0_ja1=0.1))) == ["ja0", "ja1"]
    assert layers(found.route(genome(found, keep_0_ja1=0.1, keep_0_math0=0.1))) == ["ja0", "ja1", "math0", "ja1"]
    assert layers(found.route(genome(found, keep_0_ja1=0.1, keep_1_ja1=0.1))) == ["ja0", "ja1", "ja1"]


def test_an_indicator_of_zero_drops_its_slot() -> None:
    found = space(scales="fixed")

    assert layers(found.route(genome(found, keep_0_base1=0.0))) == ["base0", "base2"]
    assert layers(found.route(genome(found, keep_0_base1=1e-9))) == ["base0", "base1", "base2"]


def test_the_matrix_scales_what_goes_from_layer_to_layer() -> None:
    found = space(order=["ja", "math"], depths={"ja": 2, "math": 2}, encoding="paper", repeats=2)
    kept = {"keep_0_ja1": 0.5, "keep_0_math1": 0.5, "keep_1_ja1": 0.5}
    scales = {"scale_ja0_ja1": 0.6, "scale_ja1_math1": 0.7, "scale_math1_ja1": 0.8}
    route = found.route(genome(found, **kept, **scales))

    assert [hop.scale for hop in route] == [1.0, 0.6, 0.7, 0.8]
    twice = [Hop("ja", 0), Hop("ja", 1, 0.6), Hop("ja", 0), Hop("ja", 1, 0.9)]
    recipe = Recipe.from_mapping(
        found.decode(found.start).to_mapping()
        | {"layers": [{"take": {hop.alias: hop.layer}, "scale": hop.scale} for hop in twice]}
    )
    with pytest.raises(ConfigError, match="no genome of this space decodes to it"):
        found.encode(recipe)


def test_a_route_over_the_limit_loses_its_smallest_indicators() -> None:
    kept = {"keep_0_base1": 0.3, "keep_0_math0": 0.1, "keep_0_math1": 0.2, "keep_1_ja0": 0.1}

    def cut(**limit: float) -> list[str]:
        found = space(scales="fixed", **limit)
        return layers(found.route(genome(found, **kept)))

    assert cut(max_hops=6) == ["base0", "base1", "math0", "math1", "ja0", "base2"]
    assert cut(max_hops=5) == ["base0", "base1", "math0", "math1", "base2"]
    assert cut(max_parameters=1.4) == ["base0", "base1", "math1", "base2"]
    assert cut(max_hops=5, max_parameters=1.0) == ["base0", "base1", "base2"]
    assert cut(max_hops=2) == ["base0", "base2"]


# ---- the others


def test_a_network_of_no_weights_scales_nothing_and_its_scales_stay_in_range() -> None:
    found = space(encoding="network", scales=[0.8, 3.0])
    flat = genome(found, keep_0_base1=0.5)
    wild = tuple(2.0 if d.name.startswith("network/") else v for d, v in zip(found.dimensions, flat, strict=True))

    assert [hop.scale for hop in found.route(flat)] == [1.0, 1.0, 1.0]
    assert all(0.8 <= hop.scale <= 3.0 for hop in found.route(wild))
    assert found.route(wild)[1].scale != 1.0


def test_a_mixed_slot_has_a_source_and_a_scale_only_if_it_is_kept() -> None:
    found = space(encoding="mixed", repeats=1)
    names = [dimension.name for dimension in found.dimensions]

    assert names == [
        "scale/0/0",
        *("keep/0/1", "source/0/1", "scale/0/1"),
        *("keep/0/2", "source/0/2", "scale/0/2"),
        *("keep/0/3", "scale/0/3"),
        "scale/end",
    ]
    values: Genome = (1.0, "keep", "ja", 0.7, "drop", None, None, "keep", 0.9, 1.2)
    assert found.route(values) == (Hop("base", 0), Hop("ja", 1, 0.7), Hop("math", 3, 0.9), Hop("base", 2, 1.2))
    with pytest.raises(ConfigError, match="scale/0/2 is not active here and must be None"):
        found.decode((*values[:6], 1.0, *values[7:]))


def test_a_mixed_route_over_the_limit_loses_its_last_slots() -> None:
    found = space(encoding="mixed", repeats=1, max_hops=3, scales="fixed")

    assert layers(found.route(("keep", "ja", "keep", "math", "keep"))) == ["base0", "ja1", "base2"]


# ---- sources and bad input


def test_the_base_is_model_a_unless_an_order_is_given() -> None:
    assert space(depths={"ja": 2, "base": 3}).route(space(depths={"ja": 2, "base": 3}).start)[0].alias == "base"
    assert space(order=["ja", "math"]).route(space(order=["ja", "math"]).start)[0].alias == "ja"


def test_only_the_sources_of_the_route_stand_in_the_recipe() -> None:
    found = space(order=["ja", "math"])
    named = space(order=["ja", "math"], tokenizer=TokenizerConfig.model_validate({"from": "base"}))

    assert list(found.decode(found.start).sources) == ["ja", "math"]
    assert set(named.decode(named.start).sources) == {"ja", "math", "base"}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"order": ["base", "math", "jp"]}, "space.order: 'jp' is not a source; known: base, ja, math"),
        ({"max_parameters": 0.4}, "space.max_parameters: 0.4 times 3 layers leaves no room"),
    ],
)
def test_what_does_not_fit_the_sources_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**keys)
    assert text in str(caught.value)


def test_genomes_and_recipes_of_other_spaces_are_refused() -> None:
    found = space(repeats=1)
    merge = Recipe.from_mapping(
        {"recipe": 1, "sources": {"a": {"model": "a"}, "b": {"model": "b"}}, "blend": {"method": "linear"}}
    )

    with pytest.raises(ConfigError, match=r"genome: expected 19 values, got 18; it belongs to another space"):
        found.decode(found.start[:-1])
    with pytest.raises(ConfigError, match="it has no route"):
        found.encode(merge)
    longer = space(repeats=2)
    twice = longer.decode(genome(longer, keep_0_base1=0.5, keep_1_base1=0.5))
    with pytest.raises(ConfigError, match="needs more than 1 repetitions"):
        found.encode(twice)
    blended = {**found.decode(found.start).to_mapping(), "blend": {"method": "linear"}}
    blended["layers"] = [{"take": {"base": 0, "math": 0}}]
    with pytest.raises(ConfigError, match=r"layers\[0\] is no step of a route"):
        found.encode(Recipe.from_mapping(blended))
