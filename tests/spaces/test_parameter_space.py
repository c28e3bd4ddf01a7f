"""The parameter space: its dimensions, and the recipes that genomes decode to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evomerge import operators
from evomerge.errors import ConfigError
from evomerge.operators import OperatorSpec
from evomerge.recipe import Recipe, SourceConfig, TokenizerConfig, expand
from evomerge.spaces import Dimension, Genome, Space, SpaceConfig, create_space

SOURCES = {alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "math", "ja")}


def space(
    *, sources: dict[str, SourceConfig] = SOURCES, base: str | None = "base", num_layers: int = 4, **keys: Any
) -> Space:
    return create_space(
        SpaceConfig.model_validate(keys),
        sources=sources,
        base=base,
        num_layers=num_layers,
        dtype="float32",
        tokenizer=TokenizerConfig.model_validate({"from": "base"}) if base else None,
        seed=3,
    )


def names(found: Space) -> list[str]:
    return [dimension.name for dimension in found.dimensions]


# ---- dimensions


def test_the_whole_model_has_one_dimension_a_source() -> None:
    assert names(space()) == ["weight/math", "weight/ja"]
    assert names(space(method="linear")) == ["weight/base", "weight/math", "weight/ja"]


def test_layer_groups_are_as_even_as_possible() -> None:
    found = space(groups={"layers": 3}, num_layers=7, sources={key: SOURCES[key] for key in ("base", "ja")})

    assert names(found) == ["weight/ja/layers.0-1", "weight/ja/layers.2-3", "weight/ja/layers.4-6"]


def test_every_layer_and_module_group_may_have_its_own() -> None:
    found = space(
        method="slerp",
        groups={"layers": "every", "modules": ["mlp", "attention"], "embeddings": True, "head": True},
        num_layers=2,
        sources={key: SOURCES[key] for key in ("base", "ja")},
    )

    assert names(found) == [
        "t/embeddings",
        "t/layers.0/attention",
        "t/layers.0/mlp",
        "t/layers.0/rest",
        "t/layers.1/attention",
        "t/layers.1/mlp",
        "t/layers.1/rest",
        "t/head",
    ]


def test_several_methods_are_a_condition_of_their_parameters() -> None:
    found = space(method=["linear", "ties"], parameters={"density": 0.3, "scale": 1.0})

    assert names(found) == [
        "method",
        "linear/weight/base",
        "linear/weight/math",
        "linear/weight/ja",
        "ties/weight/math",
        "ties/weight/ja",
    ]
    assert found.dimensions[0].choices == ("linear", "ties")
    assert found.dimensions[-1].active_when == ("method", "ties")


def test_what_a_space_names_overrides_what_the_operator_declares() -> None:
    found = space(method="ties", parameters={"weight": [-1, 2], "density": 0.25, "normalize": [False, True]})
    by_name = {dimension.name: dimension for dimension in found.dimensions}

    assert (by_name["weight/math"].low, by_name["weight/math"].high) == (-1.0, 2.0)
    assert by_name["normalize"].choices == ("false", "true")
    assert by_name["normalize"].default == "true"
    assert "density/math" not in by_name
    recipe = found.decode(found.start)
    assert recipe.blend is not None
    assert recipe.blend.settings["density"] == 0.25
    assert recipe.blend.settings["normalize"] is True


def test_what_is_neither_searched_nor_named_stays_out_of_the_recipe() -> None:
    recipe = space().decode((0.5, 0.25))

    assert recipe.to_mapping() == {
        "recipe": 1,
        "sources": {alias: {"model": f"org/{alias}"} for alias in SOURCES},
        "base": "base",
        "dtype": "float32",
        "tokenizer": {"from": "base"},
        "seed": 3,
        "blend": {"method": "task_arithmetic", "weight": {"math": 0.5, "ja": 0.25}},
    }


def test_the_start_is_the_operators_default_and_the_middle_of_the_range_for_weights_of_task_vectors() -> None:
    assert space(parameters={"weight": [0, 1.5]}).start == (0.75, 0.75)
    assert space(parameters={"weight": [0, 0.6]}).start == (0.3, 0.3)
    assert space(method="linear").start == (1 / 3,) * 3
    assert space(method=["ties", "linear"], parameters={"density": 0.2, "scale": 1}).start == (
        *("ties", 0.75, 0.75),
        *(None, None, None),
    )


# ---- decoding


def test_coefficients_land_on_their_layers_and_modules() -> None:
    found = space(groups={"layers": 2, "modules": ["mlp"]}, sources={key: SOURCES[key] for key in ("base", "ja")})
    assert names(found) == [f"weight/ja/layers.{group}/{part}" for group in ("0-1", "2-3") for part in ("mlp", "rest")]

    full = expand(found.decode((0.1, 0.2, 0.3, 0.4)), {"base": 4, "ja": 4})

    weights = [{module: blend.params["weight"] for module, blend in layer.blends.items()} for layer in full.layers]
    first = {"attention": (0.2,), "mlp": (0.1,), "other": (0.2,)}
    second = {"attention": (0.4,), "mlp": (0.3,), "other": (0.4,)}
    assert weights == [first, first, second, second]
    assert full.embeddings.params["weight"] == (0.2,)
    assert full.head.params["weight"] == (0.4,)


@pytest.mark.parametrize("layers", ["whole", 2])
def test_embeddings_and_head_may_have_their_own(layers: Any) -> None:
    found = space(
        groups={"layers": layers, "embeddings": True, "head": True},
        sources={key: SOURCES[key] for key in ("base", "ja")},
    )
    genome = tuple(0.1 * (index + 1) for index in range(len(found.dimensions)))
    full = expand(found.decode(genome), {"base": 4, "ja": 4})

    assert full.embeddings.params["weight"] == genome[:1]
    assert full.head.params["weight"] == genome[-1:]
    assert full.layers[0].blends["mlp"].params["weight"] == genome[1:2]


def test_one_group_for_all_layers_needs_no_layers_in_the_recipe() -> None:
    """A recipe stays compact where layers agree, and one group is the whole model."""
    assert space(groups={"layers": 1, "modules": ["mlp"]}).decode((1, 0, 0.5, 0.5)).layers is None
    assert names(space(groups={"layers": 1})) == names(space(groups={"layers": "whole"}))
    assert names(space(groups={"layers": "every"}, num_layers=1)) == names(space())


def test_an_average_gives_the_base_a_fixed_weight_too() -> None:
    found = space(method=["linear", "task_arithmetic"], parameters={"weight": 0.5})
    recipe = found.decode(("linear",))

    assert recipe.blend is not None
    assert recipe.blend.settings["weight"] == {"base": 0.5, "math": 0.5, "ja": 0.5}


@pytest.mark.parametrize(
    ("genome", "text"),
    [
        ((0.5,), "expected 2 values, got 1"),
        ((0.5, 1.6), r"weight/ja must be a number in \[0, 1.5\], got 1.6"),
        ((0.5, float("nan")), "weight/ja must be a number"),
        ((0.5, None), "weight/ja must be a number"),
        ((0.5, True), "weight/ja must be a number"),
        ((0.5, "x"), "weight/ja must be a number"),
    ],
)
def test_a_genome_that_does_not_fit_is_refused(genome: Genome, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        space().decode(genome)


def test_genes_of_another_method_must_be_empty() -> None:
    found = space(method=["linear", "task_arithmetic"])
    with pytest.raises(ConfigError, match="task_arithmetic/weight/math is not active here and must be None"):
        found.decode(("linear", 0.1, 0.1, 0.1, 0.1, None))
    with pytest.raises(ConfigError, match="method must be one of linear, task_arithmetic, got 'ties'"):
        found.decode(("ties", None, None, None, None, None))


def test_a_recipe_of_another_space_has_no_genome() -> None:
    wide, narrow = space(parameters={"weight": [0, 3]}), space()
    for recipe in (
        wide.decode((2.0, 2.0)),
        space(groups={"layers": 2}).decode((0.5,) * 4),
        space(method="linear").decode((0.5,) * 3),
        Recipe.from_mapping({**narrow.decode((0.5, 0.5)).to_mapping(), "seed": 4}),
        Recipe.from_mapping({"recipe": 1, "sources": {"a": {"model": "m"}}}),
    ):
        with pytest.raises(ConfigError, match="no genome of this space decodes to it"):
            narrow.encode(recipe)


# ---- wrong sections


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"method": "tie"}, "space.method: unknown merge method 'tie'; did you mean 'ties'"),
        ({"parameters": {"weight": [1, 0]}}, r"space.parameters.weight: the range \[1, 0\] is empty"),
        ({"parameters": {"weight": [1, 1]}}, r"space.parameters.weight: the range \[1, 1\] is empty"),
        ({"parameters": {"weight": [0, 1, 2]}}, r"expected \[low, high\] or a single value, got 3 values"),
        (
            {"parameters": {"weight": "much"}},
            "space.parameters.weight: .* must be a finite number, got 'much'",
        ),
        ({"parameters": {"weigth": [0, 1]}}, "space.parameters.weigth: .*did you mean 'weight'"),
        (
            {"parameters": {"density": 0.5}},
            "space.parameters.density: no such parameter of 'task_arithmetic'",
        ),
        (
            {"parameters": {"normalize": [True, True]}},
            "space.parameters.normalize: expected a list of at least two",
        ),
        ({"parameters": {"weight": 1}}, "every parameter is fixed, so there is nothing to search"),
        (
            {"method": "ties", "parameters": {"density": [0, 1]}},
            r"space.parameters.density: .*\(0, 1\], got 0",
        ),
        (
            {"method": "ties", "parameters": {"scope": ["row", "rows"]}},
            "cannot be 'rows'; did you mean 'row'",
        ),
        ({"groups": {"layers": 5}}, "space.groups.layers: 5 groups of layers .* have 4 layers"),
        ({"method": "slerp"}, "space.method: method 'slerp' blends exactly 1 sources beside the base, got 2"),
        ({"base": None}, "space.method: method 'task_arithmetic' needs a base"),
        ({"base": "bass"}, "base: 'bass' is not a source; did you mean 'base'"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        space(**keys)


def test_layers_merge_in_pairs_so_depths_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"they differ in depth \(base 2, math 2, ja 3\)"):
        create_space(SpaceConfig(), sources=SOURCES, base="base", num_layers={"base": 2, "math": 2, "ja": 3})


# ---- encode and decode are exact inverses


def blends(spec: OperatorSpec, aliases: list[str]) -> bool:
    count = len(aliases) - (spec.base == "required")
    return spec.min_sources <= count <= (spec.max_sources or count)


def _fits_beside(key: str, groups: dict[str, Any], base: str | None) -> bool:
    return {"embeddings": not groups["embeddings"], "lines": base is not None}.get(key, True)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    aliases = draw(st.lists(st.sampled_from(["base", "math", "ja", "code"]), min_size=2, max_size=4, unique=True))
    base = draw(st.sampled_from([aliases[0], None]))
    fitting = [
        name
        for name in operators.names()
        if (base is not None or operators.get(name).base == "ignored") and blends(operators.get(name), aliases)
    ]
    num_layers = draw(st.integers(1, 5))
    groups = {
        "layers": draw(st.sampled_from(["whole", "every"]) | st.integers(1, num_layers)),
        "modules": draw(st.lists(st.sampled_from(["attention", "mlp", "other"]), unique=True)),
        "embeddings": draw(st.booleans()),
        "head": draw(st.booleans()),
    }
    methods = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3, unique=True))
    groups["method"] = len(methods) > 1 and draw(st.booleans())
    same = {"tensors": [{"match": "norm", "from": aliases[0]}], "embeddings": {"take": [aliases[0]]}, "lines": {}}
    extra = draw(st.sets(st.sampled_from(sorted(same))))
    known = {item.name: item for name in methods for item in operators.get(name).parameters}
    offered = {
        "weight": [0.1, 2.0],
        "density": draw(st.sampled_from([[0.2, 0.9], 0.5])),
        "normalize": [True, False],
        "rescale": draw(st.sampled_from([["none", "l1"], "l1"])),
        "scale": [0.1, 3],
    }
    chosen = draw(st.sets(st.sampled_from(sorted(offered))))
    fixed = {name for name in chosen if not isinstance(offered[name], list)}
    assume(len(methods) > 1 or any(item.search is not None for name, item in known.items() if name not in fixed))
    return create_space(
        SpaceConfig.model_validate(
            {
                "method": methods if len(methods) > 1 else methods[0],
                "groups": groups,
                "parameters": {name: value for name, value in offered.items() if name in chosen and name in known},
                **{key: same[key] for key in extra if _fits_beside(key, groups, base)},
            }
        ),
        sources={alias: SourceConfig(model=alias) for alias in aliases},
        base=base,
        num_layers=num_layers,
        dtype="bfloat16",
        tokenizer=None,
        seed=draw(st.integers(0, 3)),
    )


@st.composite
def genomes(draw: st.DrawFn, dimensions: tuple[Dimension, ...]) -> Genome:
    genome: dict[str, Any] = {}
    for item in dimensions:
        if item.active_when is not None and genome[item.active_when[0]] != item.active_when[1]:
            genome[item.name] = None
        elif item.kind == "choice":
            genome[item.name] = draw(st.sampled_from(item.choices))
        elif item.kind == "int":
            genome[item.name] = draw(st.integers(int(item.low), int(item.high)))
        else:
            genome[item.name] = draw(st.floats(item.low, item.high))
    return tuple(genome.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_encode_and_decode_are_exact_inverses(data: st.DataObject) -> None:
    found = data.draw(spaces())
    for genome in (found.start, data.draw(genomes(found.dimensions))):
        recipe = found.decode(genome)

        assert found.encode(recipe) == genome
        assert found.decode(found.encode(recipe)) == recipe
        assert found.encode(Recipe.from_yaml(recipe.to_yaml())) == genome


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_point_of_the_unit_cube_decodes(data: st.DataObject) -> None:
    """Numeric dimensions map [0, 1] onto their range and back, and their names are unique."""
    found = data.draw(spaces())
    assert len(set(names(found))) == len(found.dimensions)
    for item in found.dimensions:
        value = item.from_unit(data.draw(st.floats(-0.1, 1.1)))
        assert item.to_unit(item.from_unit(item.to_unit(value))) == pytest.approx(item.to_unit(value))
        if item.kind != "choice":
            assert item.low <= float(value or 0) <= item.high
