"""Parameter spaces: methods by group, LiNeS, what is the same for all candidates, and every method's parameters."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evomerge import operators
from evomerge.errors import ConfigError
from evomerge.operators import OperatorSpec
from evomerge.recipe import Recipe, copied, expand, simplified
from evomerge.spaces import SpaceConfig
from tests.spaces.test_parameter_space import SOURCES, blends, names, space

# ---- a method for each group


def test_each_group_may_choose_its_method() -> None:
    found = space(
        method=["task_arithmetic", "ties"],
        groups={"layers": 2, "modules": ["attention"], "head": True, "method": True},
        parameters={"scale": 1.0, "density": 0.3},
        sources={key: SOURCES[key] for key in ("base", "ja")},
    )
    groups = ["layers.0-1/attention", "layers.0-1/rest", "layers.2-3/attention", "layers.2-3/rest", "head"]

    assert names(found) == [
        *(f"method/{group}" for group in groups),
        *(f"task_arithmetic/weight/ja/{group}" for group in groups),
        *(f"ties/weight/ja/{group}" for group in groups),
    ]
    assert [item.active_when for item in found.dimensions[5:]] == [
        (f"method/{group}", method) for method in ("task_arithmetic", "ties") for group in groups
    ]
    assert found.start == (*["task_arithmetic"] * 5, *[0.75] * 5, *[None] * 5)

    genome = ("ties", "task_arithmetic", "ties", "ties", "task_arithmetic")
    genome += (None, 0.1, None, None, 0.2, 0.3, None, 0.4, 0.5, None)
    full = expand(found.decode(genome), {"base": 4, "ja": 4})

    blends = [(layer.blends["attention"], layer.blends["mlp"], layer.blends["other"]) for layer in full.layers]
    made = [[(blend.method, blend.params["weight"], blend.params.get("density")) for blend in each] for each in blends]
    ties, plain = ("ties", (0.3,), (0.3,)), ("task_arithmetic", (0.1,), None)
    later = ("ties", (0.5,), (0.3,))
    assert made == [[ties, plain, plain]] * 2 + [[("ties", (0.4,), (0.3,)), later, later]] * 2
    assert (full.embeddings.method, full.embeddings.params["weight"]) == ("task_arithmetic", (0.1,))
    assert (full.head.method, full.head.params["weight"]) == ("task_arithmetic", (0.2,))
    assert found.encode(found.decode(genome)) == genome


def test_one_group_with_a_method_of_its_own_is_the_whole_model() -> None:
    keys: dict[str, Any] = {"method": ["ties", "linear"], "parameters": {"density": 0.2, "scale": 1}}

    assert space(groups={"method": True}, **keys).dimensions == space(**keys).dimensions


def test_an_inactive_gene_of_a_group_must_be_empty() -> None:
    found = space(method=["linear", "task_arithmetic"], groups={"layers": 2, "method": True})
    with pytest.raises(ConfigError, match=r"linear/weight/base/layers\.0-1 is not active here and must be None"):
        found.decode(("task_arithmetic", *found.start[1:]))


# ---- LiNeS, and what is the same for all candidates


def test_lines_are_two_dimensions_of_the_whole_model() -> None:
    found = space(lines={"alpha": [0, 0.6]}, groups={"layers": 2})

    assert names(found)[-2:] == ["lines/alpha", "lines/beta"]
    assert found.start[-2:] == (0.3, 0.75)
    recipe = found.decode((*found.start[:-2], 0.25, 1.5))
    assert recipe.to_mapping()["lines"] == {"alpha": 0.25, "beta": 1.5}
    assert found.encode(recipe)[-2:] == (0.25, 1.5)


def test_either_number_of_lines_may_be_fixed_and_alpha_left_to_the_model() -> None:
    found = space(lines={"alpha": "auto", "beta": [0, 2]})
    assert names(found)[-1] == "lines/beta"
    assert found.decode(found.start).to_mapping()["lines"] == {"alpha": "auto", "beta": 1.0}

    scaled = space(lines={"alpha": [0.2, 1], "beta": 0}, parameters={"weight": 1.0})
    assert names(scaled) == ["lines/alpha"]


@pytest.mark.parametrize("layers", ["whole", 2])
def test_embeddings_head_and_single_tensors_may_be_the_bases_in_all_candidates(layers: Any) -> None:
    found = space(
        method=["task_arithmetic", "linear"],
        groups={"layers": layers, "method": True},
        embeddings={"take": ["base"]},
        head={"take": ["base"]},
        tensors=[{"match": "mlp.gate", "from": "base"}],
    )
    recipe = found.decode(found.start)
    full = expand(recipe, dict.fromkeys(SOURCES, 4))

    assert [copied(simplified(blend)) for blend in (full.embeddings, full.head)] == ["base", "base"]
    assert [copied(simplified(layer.rules[0].blends["mlp"])) for layer in full.layers] == ["base"] * 4
    assert copied(simplified(full.layers[0].blends["mlp"])) is None
    assert found.encode(Recipe.from_yaml(recipe.to_yaml())) == found.start


def test_what_is_said_of_tensors_of_a_part_leaves_the_rest_of_it_searched() -> None:
    found = space(groups={"layers": 2}, head={"tensors": [{"match": "norm", "from": "base"}]})
    full = expand(found.decode((0.1, 0.2, 0.3, 0.4)), dict.fromkeys(SOURCES, 4))

    assert full.head.params["weight"] == (0.2, 0.4)
    assert copied(simplified(full.head_rules[0].blends["head"])) == "base"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"groups": {"method": True}}, "lets each group choose a method; give a list"),
        ({"groups": {"head": True}, "head": {"take": ["base"]}}, r"stands beside `groups\.head`"),
        ({"kind": "data_flow", "lines": {}}, "is for `kind: parameter` or `joint`"),
        ({"lines": {"beta": [1, 1]}}, r"expected a range \[low, high\] with low < high"),
        ({"lines": {"gamma": 1}}, "unknown key 'gamma'"),
        ({"lines": {"alpha": "out"}}, "alpha"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        SpaceConfig.model_validate(keys)


def test_faults_in_what_is_the_same_for_all_candidates_show_at_once() -> None:
    with pytest.raises(ConfigError, match=r"head\.take\[0\]: 'bas' is not a source of this recipe; did you mean"):
        space(head={"take": ["bas"]})
    with pytest.raises(ConfigError, match="lines: needs a base"):
        space(method="linear", base=None, lines={})


# ---- every method


@pytest.mark.parametrize("spec", operators.specs(), ids=lambda spec: spec.name)
def test_every_declared_parameter_can_be_searched(spec: OperatorSpec) -> None:
    """All at once over their ranges: any genome decodes, completes, and is found again; defaults are within."""
    aliases = next(some for some in (["base", "math", "ja"], ["base", "math"]) if blends(spec, some))
    found = space(
        method=spec.name,
        parameters={parameter.name: parameter.range for parameter in spec.parameters},
        sources={alias: SOURCES[alias] for alias in aliases},
    )
    by_parameter = {name.split("/")[0]: item for name, item in zip(names(found), found.dimensions, strict=True)}

    assert list(by_parameter) == [parameter.name for parameter in spec.parameters]
    for parameter in spec.parameters:
        item = by_parameter[parameter.name]
        low, high = parameter.range[0], parameter.range[-1]
        if item.kind == "choice":
            assert len(item.choices) == len(parameter.range)
        else:
            assert (item.low, item.high) == (low, high)
            assert item.scale == parameter.scale
        value = parameter.default
        assert value in parameter.range if item.kind == "choice" else float(low) <= float(value) <= float(high)
    for unit in (0.0, 0.37, 1.0):
        genome = tuple(item.from_unit(unit) for item in found.dimensions)
        recipe = found.decode(genome)
        blend = expand(recipe, dict.fromkeys(aliases, 4)).layers[0].blends["mlp"]
        assert list(blend.params) == list(by_parameter)
        assert found.encode(recipe) == genome
