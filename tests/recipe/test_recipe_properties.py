"""Properties of all recipes: reading and writing are inverses, and identity follows meaning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evomerge import operators
from evomerge.operators.metadata import OperatorSpec, Parameter
from evomerge.recipe import MODULES, Blend, Recipe, SourceInfo, canonical, expand, identity
from evomerge.recipe.copies import copied, simplified

ALIASES = ("origin", "math", "ja", "code_2", "x.y-z")
METHODS = operators.names()
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def numbers(parameter: Parameter) -> st.SearchStrategy[float]:
    low = -2.0 if parameter.low is None else parameter.low
    high = 2.0 if parameter.high is None else parameter.high
    nice = [value for value in (0.0, 0.5, 1.0) if low < value <= high or (value == low and not parameter.low_open)]
    any_number = st.floats(low, high, exclude_min=parameter.low_open, allow_subnormal=False)
    return any_number | st.sampled_from(nice) if nice else any_number


def values(parameter: Parameter) -> st.SearchStrategy[Any]:
    if parameter.kind == "bool":
        return st.booleans()
    if parameter.kind == "choice":
        return st.sampled_from(parameter.choices)
    if parameter.kind == "int":
        return st.integers(int(parameter.low or 0), int(parameter.high or 10))
    return numbers(parameter)


def blends_so_many(name: str, count: int) -> bool:
    spec = operators.get(name)
    return spec.min_sources <= count <= (spec.max_sources or count)


def parameters_of(spec: OperatorSpec, experts: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    def setting(parameter: Parameter) -> st.SearchStrategy[Any]:
        one = values(parameter)
        if not parameter.per_source:
            return one
        return one | st.dictionaries(st.sampled_from(experts), one, min_size=1)

    return st.fixed_dictionaries({}, optional={item.name: setting(item) for item in spec.parameters})


@st.composite
def blends(draw: st.DrawFn, experts: list[str], *, of: str | None = None) -> dict[str, Any]:
    """A blend of any method, or (`of`) one that overrides parameters of that method only."""
    fitting = [name for name in METHODS if blends_so_many(name, len(experts))]
    if of is not None and draw(st.booleans()):
        return draw(parameters_of(operators.get(of), experts))
    method = draw(st.sampled_from(fitting))
    return {"method": method, **draw(parameters_of(operators.get(method), experts))}


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A recipe as plain data, and the depth of its sources."""
    aliases = draw(st.lists(st.sampled_from(ALIASES), min_size=2, max_size=4, unique=True))
    base, experts = aliases[0], aliases[1:]
    depth = draw(st.integers(1, 3))
    top = draw(blends(experts))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 5),
        "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
        "tokenizer": st.builds(lambda alias: {"from": alias}, st.sampled_from(aliases)),
        "embeddings": st.builds(lambda blend: {"blend": blend}, blends(experts, of=top["method"])),
        "head": st.builds(lambda blend: {"blend": blend}, blends(experts, of=top["method"])),
        "modules": module_blends(experts, top["method"]),
        "lines": st.sampled_from([{}, {"alpha": 0.5}, {"alpha": 0.25, "beta": 0.5}, {"alpha": "auto", "beta": 0.5}]),
        "layers": st.lists(layers(aliases, experts, depth), min_size=1, max_size=3),
    }
    document = {
        "recipe": 1,
        "sources": {alias: {"model": f"org/{alias}"} for alias in draw(st.permutations(aliases))},
        "base": base,
        "blend": top,
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }
    return document, depth


def module_blends(experts: list[str], method: str) -> st.SearchStrategy[dict[str, Any]]:
    # A link may inherit a method that it does not name, so modules here override parameters alone.
    own = parameters_of(operators.get(method), experts)
    return st.fixed_dictionaries({}, optional=dict.fromkeys(MODULES, own))


@st.composite
def layers(draw: st.DrawFn, aliases: list[str], experts: list[str], depth: int) -> dict[str, Any]:
    blend = draw(blends(experts))
    optional = {
        "scale": st.sampled_from([0.5, 1.0, -2.0]),
        "modules": module_blends(experts, blend["method"]),
    }
    take = draw(st.fixed_dictionaries({alias: st.integers(0, depth - 1) for alias in aliases}))
    own = draw(st.sampled_from([{}, {"blend": blend}]))
    return {"take": take, **own, **(draw(st.fixed_dictionaries({}, optional=optional)) if own else {})}


def infos_of(recipe: Recipe, depth: int) -> dict[str, SourceInfo]:
    return {alias: SourceInfo(f"sha256:{recipe.sources[alias].model}", depth) for alias in recipe.sources}


def renamed(data: Any, names: dict[str, str]) -> Any:
    """Rename aliases wherever they stand: as keys, and as the values of `base` and `from`."""
    if isinstance(data, dict):
        return {
            names.get(key, key): names[value] if key in ("base", "from") else renamed(value, names)
            for key, value in data.items()
        }
    return [renamed(item, names) for item in data] if isinstance(data, list) else data


def written_out(blend: Blend) -> dict[str, Any]:
    return {
        "method": blend.method,
        **{
            name: dict(zip(blend.sources, value, strict=True)) if isinstance(value, tuple) else value
            for name, value in blend.params.items()
        },
    }


def spelled_out(recipe: Recipe, depth: int) -> dict[str, Any]:
    """The same recipe with every default, layer, module and source's value written down."""
    expanded = expand(recipe, dict.fromkeys(recipe.sources, depth))
    return {
        **{key: recipe.to_mapping()[key] for key in ("recipe", "sources", "base")},
        "lines": {"alpha": recipe.lines.alpha, "beta": recipe.lines.beta} if recipe.lines else {},
        "dtype": recipe.dtype,
        "seed": recipe.seed,
        "tokenizer": {"from": recipe.tokenizer.from_ if recipe.tokenizer else recipe.base},
        "embeddings": {"blend": written_out(expanded.embeddings)},
        "head": {"blend": written_out(expanded.head)},
        "layers": [
            {
                "take": dict(layer.take),
                "scale": layer.scale,
                "modules": {module: written_out(blend) for module, blend in layer.blends.items()},
            }
            for layer in expanded.layers
        ],
    }


@few
@given(documents())
def test_yaml_and_mapping_round_trip(drawn: tuple[dict[str, Any], int]) -> None:
    """What is written is read back as the same recipe, and plain data stays plain data."""
    recipe = Recipe.from_mapping(drawn[0])
    data = recipe.to_mapping()

    assert Recipe.from_mapping(data) == recipe
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert json.loads(json.dumps(data)) == data
    assert hash(Recipe.from_mapping(data)) == hash(recipe)


@few
@given(documents(), st.randoms(use_true_random=False))
def test_names_and_order_of_sources_do_not_matter(drawn: tuple[dict[str, Any], int], random: Any) -> None:
    data, depth = drawn
    recipe = Recipe.from_mapping(data)
    order = list(data["sources"])
    random.shuffle(order)
    shuffled = {**data, "sources": {alias: data["sources"][alias] for alias in order}}
    other = Recipe.from_mapping(renamed(shuffled, {alias: f"n{index}" for index, alias in enumerate(order)}))

    assert identity(other, infos_of(other, depth)) == identity(recipe, infos_of(recipe, depth))


@few
@given(documents())
def test_defaults_layers_and_scalars_may_be_spelled_out(drawn: tuple[dict[str, Any], int]) -> None:
    recipe = Recipe.from_mapping(drawn[0])
    infos = infos_of(recipe, drawn[1])
    longer = Recipe.from_mapping(spelled_out(recipe, drawn[1]))

    assert canonical(longer, infos) == canonical(recipe, infos)
    assert identity(longer, infos) == identity(recipe, infos)


@few
@given(documents())
def test_the_canonical_form_names_no_alias_and_is_json(drawn: tuple[dict[str, Any], int]) -> None:
    recipe = Recipe.from_mapping(renamed(drawn[0], {alias: f"alias-{alias}" for alias in ALIASES}))
    text = json.dumps(canonical(recipe, infos_of(recipe, drawn[1])), allow_nan=False)

    assert "alias-" not in text


@few
@given(documents(), st.integers(6, 9))
def test_the_seed_counts_where_something_is_drawn(drawn: tuple[dict[str, Any], int], seed: int) -> None:
    recipe = Recipe.from_mapping(drawn[0])
    infos = infos_of(recipe, drawn[1])
    reseeded = Recipe.from_mapping({**drawn[0], "seed": seed})
    text = json.dumps(canonical(recipe, infos))
    random = any(f'"method": "{spec.name}"' in text for spec in operators.specs() if spec.random)

    assert (identity(reseeded, infos) != identity(recipe, infos)) == random


@few
@given(documents(), st.data())
def test_any_number_that_counts_changes_the_identity(drawn: tuple[dict[str, Any], int], data: st.DataObject) -> None:
    recipe = Recipe.from_mapping(drawn[0])
    infos = infos_of(recipe, drawn[1])
    document = spelled_out(recipe, drawn[1])
    index = data.draw(st.integers(0, len(document["layers"]) - 1))
    module = data.draw(st.sampled_from(MODULES))
    blend = document["layers"][index]["modules"][module]
    depths = dict.fromkeys(recipe.sources, drawn[1])
    # Of a copy, nothing but the source counts.
    written = expand(recipe, depths).layers[index].blends[module]
    assume(copied(simplified(replace(written, lines=None))) is None)
    spec = operators.get(blend["method"])
    floats = [item for item in spec.parameters if item.kind == "float"]
    assume(floats)
    parameter = data.draw(st.sampled_from(floats))
    value = data.draw(numbers(parameter))
    weights = blend.get("weight", {"": 1.0})
    if parameter.per_source:
        alias = data.draw(st.sampled_from(sorted(blend[parameter.name])))
        assume(weights.get(alias, 1.0) != 0 and value not in (0, blend[parameter.name][alias]))
        blend[parameter.name][alias] = value
    else:
        assume(any(weights.values()) and value != blend[parameter.name])
        blend[parameter.name] = value

    assert identity(Recipe.from_mapping(document), infos) != identity(recipe, infos)
