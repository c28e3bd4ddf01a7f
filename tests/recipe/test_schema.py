"""What a recipe document may say, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.documents import StrictModel, parse_yaml
from evomerge.errors import ConfigError, RecipeError
from evomerge.recipe import Recipe, SourceConfig, read_recipe

GOOD = """\
recipe: 1
sources:
  base: {model: org/base, revision: abc}
  math: {model: ./math}
  ja: {model: org/ja, adapter: org/lora}
base: base
dtype: float32
tokenizer: {from: base}
blend: {method: ties, weight: {math: 0.7, ja: 0.4}, density: 0.5}
layers:
  - {take: {math: 0, ja: 0}}
  - {take: {ja: 1}, scale: 0.92}
  - {take: {math: 1, ja: 1}, blend: {weight: {math: 1, ja: 0.2}}, modules: {mlp: {density: 0.3}}}
embeddings: {blend: {density: 1}}
head: {blend: {method: linear}}
"""


def test_the_documented_example_is_read_and_written_back() -> None:
    recipe = Recipe.from_yaml(GOOD)

    assert recipe.layers is not None
    assert recipe.layers[1].scale == 0.92
    assert recipe.blend is not None
    assert recipe.blend.settings == {"weight": {"math": 0.7, "ja": 0.4}, "density": 0.5}
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_defaults_are_left_out_when_written() -> None:
    recipe = Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {"a": {"model": "m", "revision": None}},
            "dtype": "bfloat16",
            "seed": 0,
            "blend": {"method": "linear", "weight": 1},
        }
    )

    assert recipe.to_mapping() == {
        "recipe": 1,
        "sources": {"a": {"model": "m"}},
        "blend": {"method": "linear", "weight": 1.0},
    }


@pytest.mark.parametrize("model", ["1e5", "12", "null", "yes", "~", "a: b", "é", "2001-01-01", "0x1F", " x"])
def test_words_that_look_like_other_values_survive_yaml(model: str) -> None:
    recipe = Recipe(recipe=1, sources={"a": SourceConfig(model=model)})

    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        (
            "base: base\n",
            "base: bse\n",
            6,
            "base: 'bse' is not a source of this recipe; did you mean 'base'?",
        ),
        (
            "{math: 0, ja: 0}",
            "{moth: 0}",
            11,
            "layers[0].take.moth: 'moth' is not a source .*did you mean 'math'",
        ),
        (
            "{math: 0, ja: 0}",
            "{math: -1, ja: 0}",
            11,
            "layers[0].take.math: layers are counted from 0, got -1",
        ),
        ("density: 0.3", "densty: 0.3", 13, "layers[2].modules.mlp.densty: .* did you mean 'density'?"),
        ("density: 0.3", "density: 3", 13, "layers[2].modules.mlp.density: .* must lie in (0, 1], got 3.0"),
        ("density: 0.3", "density: .nan", 13, "layers[2].modules.mlp.density: expected a finite number"),
        ("density: 0.3", "density: [1, 2]", 13, "layers[2].modules.mlp.density: expected a finite number"),
        (
            "density: 0.3",
            "density: {base: 1}",
            13,
            "density.base: the base of method 'ties' has no 'density'",
        ),
        ("density: 0.3", "scope: {ja: row}", 13, "scope: .* takes one value, not one a source"),
        ("density: 0.3", "scope: tensr", 13, "scope: .* cannot be 'tensr'; did you mean 'tensor'?"),
        ("mlp:", "mpl:", 13, "layers[2].modules.mpl: unknown key 'mpl'; did you mean 'mlp'?"),
        ("method: ties", "method: tie", 9, "blend.method: unknown merge method 'tie'; did you mean 'ties'?"),
        ("method: ties", "metod: ties", 9, "blend.metod: unknown key 'metod'; did you mean 'method'?"),
        ("method: ties, ", "", 14, "embeddings: no merge method is given for this part"),
        ("ja: 0.4", "jap: 0.4", 9, "blend.weight.jap: 'jap' is not a source"),
        ("ja: 0.4", "ja: high", 9, "blend.weight.ja: .* must be a finite number, got 'high'"),
        ("scale: 0.92", "scale: 0", 12, "layers[1].scale: must not be 0"),
        ("scale: 0.92", "scale: .inf", 12, "layers[1].scale: input should be a finite number, got inf"),
        (
            "scale: 0.92",
            "blend: {weight: {math: 1}}",
            12,
            "'math' is not among the sources that this layer takes",
        ),
        (
            "take: {math: 1, ja: 1}",
            "take: {math: 1, ja: 0}",
            13,
            "layers[2].take: .* needs a layer of the base",
        ),
        ("{from: base}", "{from: bas}", 8, "tokenizer.from: 'bas' is not a source"),
        ("{from: base}", "{union: [base, jo]}", 8, "tokenizer.union[1]: 'jo' is not a source"),
        ("{from: base}", "{from: base, union: [base, ja]}", 8, "tokenizer: give exactly one of"),
        ("model: org/base", "modell: org/base", 3, "sources.base.modell: unknown key 'modell'"),
        ("model: org/base", "model: 3", 3, "sources.base.model: input should be a valid string, got 3"),
        ("adapter: org/lora", "adapter_revision: x", 5, "sources.ja: adapter_revision needs an adapter"),
        ("  math: {", "  ma/th: {", 2, "sources: the alias 'ma/th' may hold"),
        ("recipe: 1", "recipe: 2", 1, "recipe: input should be 1, got 2"),
        ("dtype: float32", "dtype: float8", 7, "dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        ("dtype: float32", "seed: -1", 7, "seed: input should be greater than or equal to 0, got -1"),
        ("base: base\n", "", 8, "blend.method: method 'ties' needs a base; name it"),
        (
            "{method: linear}",
            "{method: slerp}",
            15,
            "head.blend.method: .* blends exactly 1 sources beside the base",
        ),
        ("head:", "segments: [{density: 1}]\nhead:", 10, "layers: cannot stand beside `segments`"),
    ],
)
def test_a_fault_is_named_with_its_line_and_key_path(old: str, new: str, line: int, text: str) -> None:
    """Every wrong recipe is one sentence that begins with file, line and key path."""
    assert old in GOOD
    pattern = "recipe.yaml:" + str(line) + ": .*" + text.translate({ord(mark): "\\" + mark for mark in "[]()?"})

    with pytest.raises(RecipeError, match=pattern) as caught:
        Recipe.from_yaml(GOOD.replace(old, new, 1), "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_a_fault_inside_a_nested_recipe_keeps_its_path() -> None:
    nested = "{model: {recipe: 1, sources: {x: {model: m}}, blend: {method: linear, weigth: 1}}}"

    with pytest.raises(RecipeError, match=r"r:3: sources\.base\.model\.blend\.weigth: .*did you mean 'weight'"):
        Recipe.from_yaml(GOOD.replace("{model: org/base, revision: abc}", nested), "r")


def test_a_fault_inside_another_document_keeps_its_path() -> None:
    class Outer(StrictModel):
        inner: Recipe

    text = "inner:\n" + "".join(f"  {line}\n" for line in GOOD.replace("density: 0.3", "density: 3").splitlines())
    with pytest.raises(ConfigError, match=r"f:14: inner\.layers\[2\]\.modules\.mlp\.density: "):
        parse_yaml(text, "f").parse(Outer)


def test_plain_data_is_refused_with_the_key_path_alone() -> None:
    with pytest.raises(RecipeError, match=r"^sources\.a\.modle: unknown key 'modle'; did you mean 'model'\?$"):
        Recipe.from_mapping({"recipe": 1, "sources": {"a": {"modle": "m"}}})


def test_recipes_nest_to_any_depth() -> None:
    inner = {
        "recipe": 1,
        "sources": {"a": {"model": "m"}, "b": {"model": "n"}},
        "blend": {"method": "linear"},
    }
    middle = {**inner, "sources": {"x": {"model": inner}, "y": {"model": "o"}}}
    recipe = Recipe.from_mapping({**inner, "sources": {"p": {"model": middle}, "q": {"model": "o"}}})

    nested = recipe.sources["p"].model
    assert isinstance(nested, Recipe)
    assert isinstance(nested.sources["x"].model, Recipe)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_segments_end_in_rising_order() -> None:
    head = "recipe: 1\nsources: {a: {model: m}, b: {model: n}}\nblend: {method: linear}\nsegments:\n"
    good = head + "  - {until: 10, weight: {a: 1}}\n  - {until: 20, weight: {b: 1}}\n  - {weight: 0.5}\n"
    assert Recipe.from_yaml(Recipe.from_yaml(good).to_yaml()) == Recipe.from_yaml(good)

    with pytest.raises(
        RecipeError, match=r"segments\[1\]\.until: must lie beyond the end of the segment before it, 10"
    ):
        Recipe.from_yaml(good.replace("until: 20", "until: 10"))
    with pytest.raises(RecipeError, match=r"segments\[2\]\.until: every segment but the last must say where it ends"):
        Recipe.from_yaml(good.replace("{weight: 0.5}", "{until: 30, weight: 0.5}"))
    with pytest.raises(RecipeError, match=r"segments\[0\]\.weigth: .*did you mean 'weight'"):
        Recipe.from_yaml(good.replace("weight: {a: 1}", "weigth: {a: 1}"))


@pytest.mark.parametrize(
    ("segments", "text"),
    [
        ("{mpl: [{}]}", r"segments\.mpl: 'mpl' is not a chromosome; did you mean 'mlp'"),
        ("{mlp: []}", r"segments\.mlp: "),
        ("{}", "segments: "),
        ("[]", "segments: "),
        ("{mlp: [{until: 5}, {until: 3}, {}]}", r"segments\.mlp\[1\]\.until: must lie beyond .* 5"),
        ("{mlp: [{}, {}]}", r"segments\.mlp\[0\]\.until: every segment but the last"),
        ("{mlp: [{weight: {c: 1}}]}", r"segments\.mlp\[0\]\.weight\.c: 'c' is not a source"),
        (
            "{attention: [{}], mlp: [{}], other: [{}], embeddings: [{}], head: [{}], rest: [{}]}",
            r"segments\.rest: every",
        ),
        ("[{noise: {-1: 0.1}}]", r"segments\[0\]\.noise: the seed -1 is not a whole number"),
        ("[{noise: {'007': 0.1}}]", r"segments\[0\]\.noise: the seed '007' is not a whole number"),
        ("[{noise: {18446744073709551616: 0.1}}]", r"segments\[0\]\.noise: the seed 18446744073709551616 is not"),
        ("[{noise: {1: much}}]", r"segments\[0\]\.noise: expected a finite number for seed 1, got 'much'"),
        ("[{until: 2, noise: 3}, {}]", r"segments\[0\]\.noise: "),
    ],
)
def test_faults_of_segments_name_their_key(segments: str, text: str) -> None:
    head = "recipe: 1\nsources: {a: {model: m}, b: {model: n}}\nblend: {method: linear}\nsegments: "
    with pytest.raises(RecipeError, match=text):
        Recipe.from_yaml(head + segments)


def test_chromosomes_with_noise_survive_a_round_trip() -> None:
    head = "recipe: 1\nsources: {a: {model: m}, b: {model: n}}\nblend: {method: linear}\nsegments:\n"
    recipe = Recipe.from_yaml(head + "  mlp: [{until: 3, weight: {a: 1}}, {noise: {5: 0.01}}]\n  rest: [{}]\n")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe
    assert recipe.to_mapping()["segments"]["mlp"][1] == {"noise": {"5": 0.01}}


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read_recipe(tmp_path / "none.yaml")


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)

    assert read_recipe(path) == Recipe.from_yaml(GOOD)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.from_yaml(GOOD).seed = 3
