"""mergekit's files as recipes: shapes, parameters, names of models, tokenizers, and what is refused."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.documents import parse_yaml
from evomerge.errors import ConfigError, RecipeError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.recipe.mergekit import Imported, ModelFacts, import_genome, import_mergekit, is_genome, is_mergekit
from evomerge.recipe.mergekit.document import Condition, ModelRef
from evomerge.recipe.mergekit.settings import evaluate

_PARTS = {
    "self_attn.q_proj.weight": "attention",
    "self_attn.k_proj.weight": "attention",
    "mlp.up_proj.weight": "mlp",
    "mlp.down_proj.weight": "mlp",
    "input_layernorm.weight": "other",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "embeddings",
    "model.norm.weight": "head",
    "lm_head.weight": "head",
}


def look(source: SourceConfig) -> ModelFacts:
    """Any model has four layers; one that is called deep has six."""
    depth = 6 if source.model == "org/deep" else 4
    return ModelFacts("model.layers", (_PARTS,) * depth, _OUTSIDE, "bfloat16")  # type: ignore[arg-type]


def imported(text: str) -> Imported:
    return import_mergekit(parse_yaml(textwrap.dedent(text), "m.yml"), look)


def recipe(text: str) -> dict[str, Any]:
    found = imported(text).recipe
    assert Recipe.from_yaml(found.to_yaml()) == found
    return found.to_mapping()


# ---- parameters


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_lies_between_its_points(values: list[float], t: float) -> None:
    found = evaluate((Condition(None, tuple(values), is_gradient=True),), "x", t, "float")
    assert isinstance(found, float)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    ends = [evaluate((Condition(None, tuple(values), is_gradient=True),), "x", end, "float") for end in (0.0, 1.0)]
    assert ends == [values[0], values[-1]]


def test_a_gradient_is_interpolated_over_the_layers_of_its_slice() -> None:
    gradient = (Condition(None, (0.0, 1.0, 3.0), is_gradient=True),)
    assert [evaluate(gradient, "x", t, "float") for t in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 2, 3]


def test_a_gradient_of_truth_values_picks() -> None:
    gradient = (Condition(None, (True, False), is_gradient=True),)
    assert [evaluate(gradient, "x", t, "bool") for t in (0, 0.9, 1)] == [True, True, False]


def test_the_first_filter_that_is_part_of_the_name_counts() -> None:
    setting = (
        Condition("mlp", (1,), is_gradient=False),
        Condition("up_proj", (2,), is_gradient=False),
    )
    assert evaluate(setting, "layers.0.mlp.up_proj.weight", 0, "float") == 1.0
    assert evaluate(setting, "layers.0.self_attn.up_proj.weight", 0, "float") == 2.0
    assert evaluate(setting, "norm.weight", 0, "float") is None


def test_texts_that_spell_numbers_are_numbers() -> None:
    assert evaluate((Condition(None, ("1e-3",), is_gradient=False),), "x", 0, "float") == 0.001
    with pytest.raises(ValueError, match="expected a number, got 'much'"):
        evaluate((Condition(None, ("much",), is_gradient=False),), "x", 0, "float")


# ---- names


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("org/model", {"path": "org/model"}),
        ("org/model@main", {"path": "org/model", "revision": "main"}),
        ("org/model+org/lora", {"path": "org/model", "adapter": "org/lora"}),
        (
            "org/model@a+org/lora@b",
            {"path": "org/model", "revision": "a", "adapter": "org/lora", "adapter_revision": "b"},
        ),
        (
            {"model": "x", "lora": {"path": "y", "revision": "z"}},
            {"path": "x", "adapter": "y", "adapter_revision": "z"},
        ),
        ({"model": {"path": "x", "revision": "y"}}, {"path": "x", "revision": "y"}),
    ],
)
def test_models_are_named_in_mergekits_ways(written: Any, found: dict[str, str]) -> None:
    ref = ModelRef.model_validate(written)
    assert ref.model_dump(exclude_none=True) == found
    assert ModelRef.model_validate(ref.text) == ref


def test_an_adapter_is_a_source() -> None:
    found = recipe(
        """
        merge_method: task_arithmetic
        base_model: org/model
        models: [{model: org/model+org/lora-math@v2, parameters: {weight: 0.5}}]
        dtype: float16
        """
    )
    assert found["sources"] == {
        "model": {"model": "org/model"},
        "lora-math": {"model": "org/model", "adapter": "org/lora-math", "adapter_revision": "v2"},
    }
    assert (found["base"], found["dtype"]) == ("model", "float16")
    assert found["blend"] == {
        "method": "task_arithmetic",
        "weight": {"lora-math": 0.5},
        "scale": 1.0,
        "normalize": False,
    }


def test_models_of_one_last_name_have_aliases_of_their_own() -> None:
    found = recipe(
        """
        merge_method: linear
        models: [{model: a/chat, parameters: {weight: 1}}, {model: b/chat, parameters: {weight: 2}}]
        """
    )
    assert found["sources"] == {"chat": {"model": "a/chat"}, "chat-2": {"model": "b/chat"}}
    assert found["blend"]["weight"] == {"chat": 1.0, "chat-2": 2.0}


# ---- shapes


def test_module_filters_become_module_groups() -> None:
    found = recipe(
        """
        slices:
          - sources: [{model: a/x, layer_range: [0, 4]}, {model: a/y, layer_range: [0, 4]}]
        merge_method: slerp
        base_model: a/x
        parameters: {t: [{filter: self_attn, value: [0, 0.3]}, {filter: mlp, value: 0.7}, {value: 0.5}]}
        out_dtype: float32
        dtype: bfloat16
        """
    )
    assert found["dtype"] == "float32"
    assert [layer["take"] for layer in found["layers"]] == [{"x": index, "y": index} for index in range(4)]
    blends = [{**found["blend"], **layer.get("blend", {})} for layer in found["layers"]]
    attention = [
        layer.get("modules", {}).get("attention", blend) for layer, blend in zip(found["layers"], blends, strict=True)
    ]
    assert [round(one["t"], 6) for one in attention] == [0.0, 0.1, 0.2, 0.3]


def test_filters_of_single_tensors_become_patterns_for_the_whole_recipe() -> None:
    found = recipe(
        """
        merge_method: linear
        models:
          - model: a/x
            parameters: {weight: [{filter: up_, value: 0.1}, {filter: model.norm, value: 0.9}, {value: 0.5}]}
          - {model: a/y, parameters: {weight: 1}}
        """
    )
    assert "layers" not in found
    assert found["blend"]["weight"] == {"x": 0.5, "y": 1.0}
    (rule,) = found["tensors"]
    assert (rule["match"], rule["blend"]["weight"]) == ("up_proj", {"x": 0.1, "y": 1.0})
    (norm,) = found["head"]["tensors"]
    assert (norm["match"], norm["blend"]["weight"]) == ("norm", {"x": 0.9, "y": 1.0})


def test_a_passthrough_copies_layers_and_ends() -> None:
    found = recipe(
        """
        slices:
          - sources: [{model: a/x, layer_range: [0, 2]}]
          - sources: [{model: a/y, layer_range: [1, 3]}]
        merge_method: passthrough
        dtype: float16
        """
    )
    assert found["layers"] == [{"take": {"x": 0}}, {"take": {"x": 1}}, {"take": {"y": 1}}, {"take": {"y": 2}}]
    assert (found["embeddings"], found["head"]) == ({"take": ["x"]}, {"take": ["y"]})
    assert "blend" not in found


def test_defaults_of_mergekit_are_written_out() -> None:
    def blend(method: str, more: str = "") -> dict[str, Any]:
        text = f"merge_method: {method}\nbase_model: a/b\nmodels: [{{model: a/x, parameters: {{weight: 1 {more}}}}}]"
        return dict(recipe(text)["blend"])

    assert blend("ties") == {
        "method": "ties",
        "weight": {"x": 1.0},
        "density": {"x": 1.0},
        "rescale": "none",
        "scale": 1.0,
        "normalize": True,
        "scope": "tensor",
        "zero_sign": "positive",
    }
    assert blend("dare_linear", ", density: 0.3")["rescale"] == "l1"
    assert blend("della", ", density: 0.3")["epsilon"] == {"x": 0.15}
    assert blend("breadcrumbs")["top"] == {"x": 0.01}
    assert blend("ties", ", density: 0")["weight"] == {"x": 0.0}
    assert blend("ties", ", density: 7")["density"] == {"x": 1.0}


def test_a_base_that_is_not_listed_is_an_input_of_methods_that_know_no_base() -> None:
    found = recipe("merge_method: karcher\nbase_model: a/b\nmodels: [{model: a/x}, {model: a/y}]")
    assert found["blend"]["weight"] == {"x": 1.0, "y": 1.0, "b": 1.0}


def test_the_type_is_that_of_the_models_where_none_is_given() -> None:
    assert imported("merge_method: linear\nmodels: [{model: a/x, parameters: {weight: 1}}]").recipe.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        ("tokenizer_source: union", {"union": ["b", "x"], "missing": "base"}),
        ("tokenizer_source: base", {"from": "b", "missing": "base"}),
        ("tokenizer_source: a/x", {"from": "x", "missing": "base"}),
        (
            "tokenizer: {source: union, pad_to_multiple_of: 8}",
            {"union": ["b", "x"], "missing": "base", "pad_to_multiple_of": 8},
        ),
        (
            "tokenizer: {source: base, tokens: {<s>: {source: a/x, force: true}, <t>: {source: {kind: zero}}}}",
            {
                "from": "b",
                "missing": "base",
                "tokens": {"<s>": {"from": "x", "everywhere": True}, "<t>": {"zero": True}},
            },
        ),
        (
            "tokenizer: {source: base, tokens: {<s>: {source: {kind: model_token, model: a/x, token: hi}}}}",
            {"from": "b", "missing": "base", "tokens": {"<s>": {"from": "x", "token": "hi"}}},
        ),
    ],
)
def test_tokenizer_rules_are_taken_over(tokenizer: str, found: dict[str, Any]) -> None:
    text = "merge_method: linear\nbase_model: a/b\nparameters: {weight: 1}\nmodels: [{model: a/x}]\n"
    assert recipe(text + tokenizer)["tokenizer"] == found


# ---- notes and faults


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "merge_method: ties\nbase_model: a/b\nmodels: [{model: a/x, parameters: {weight: -1}}]\ndtype: float32",
            "ties: with negative weights mergekit divides by their signed sum",
        ),
        (
            "merge_method: linear\nmodels: [{model: a/x, parameters: {weight: 1, density: 0.5}}]",
            "models[0].parameters.density: method 'linear' has no density; without effect",
        ),
        (
            "merge_method: slerp\nbase_model: a/b\nparameters: {t: 1}\nmodels: [{model: a/x, parameters: {t: 0.5}}]",
            "models[0].parameters.t: mergekit reads t for all sources only",
        ),
        (
            "merge_method: ties\nbase_model: a/b\nmodels: [{model: a/x, parameters: {weight: 1}}]\ndtype: bfloat16",
            "dtype: mergekit computes ties in bfloat16; here it is float32",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a/x, layer_range: [0, 1]}], residual_weight: 0.5}]",
            "slices[0].residual_weight: without effect in mergekit",
        ),
        (
            (
                "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
                "- sources: [{model: a/x, layer_range: [0, 1]}]\n"
                "- sources: [{model: a/x, layer_range: [0, 1]}, {model: a/y, layer_range: [0, 1]}]"
            ),
            "slices: mergekit takes no more sources for final norm and head than its first slice has (1)",
        ),
        (
            (
                "merge_method: passthrough\nslices: [{merge_method: linear, sources: [{model: a/x, "
                "layer_range: [0, 1], parameters: {weight: 1}}]}]"
            ),
            "slices[0].merge_method: mergekit ignores a method of a slice; here it counts",
        ),
    ],
)
def test_differences_from_mergekit_are_told(text: str, note: str) -> None:
    assert any(found.startswith(note) for found in imported(text).notes), imported(text).notes


def test_where_nothing_differs_nothing_is_told() -> None:
    assert imported("merge_method: linear\nmodels: [{model: a/x, parameters: {weight: 1}}]\ndtype: float16").notes == ()


_LINEAR = "merge_method: linear\nmodels: [{model: a/x, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "merge_method: tise\nmodels: [{model: a/x}]",
            "m.yml:1: merge_method: mergekit has no method 'tise'; did you mean 'ties'?",
        ),
        (_LINEAR + "dtypo: float32", "m.yml:3: dtypo: unknown key 'dtypo'; did you mean 'dtype'?"),
        (_LINEAR + "dtype: float23", "m.yml:3: dtype: 'float23' is no type of weights; did you mean 'float32'?"),
        (
            "merge_method: linear\nmodels: [{model: a/x, paramaters: {weight: 1}}]",
            "models[0].paramaters: unknown key 'paramaters'; did you mean 'parameters'?",
        ),
        (
            "merge_method: linear\nmodels: [{model: a/x, parameters: {wieght: 1}}]",
            "models[0].parameters.wieght: method 'linear' has no parameter 'wieght'; did you mean 'weight'?",
        ),
        (
            "merge_method: linear\nmodels: [{model: a/x}]",
            "models[0].parameters.weight: mergekit requires this parameter",
        ),
        ("merge_method: linear", "give exactly one of `models`, `slices` and `modules`, got none"),
        (_LINEAR + "slices: [{sources: [{model: a/x, layer_range: [0, 1]}]}]", "got models and slices"),
        ("merge_method: ties\nmodels: [{model: a/x, parameters: {weight: 1}}]", "method 'ties' needs a base"),
        (
            "merge_method: slerp\nparameters: {t: 1}\nbase_model: a/b\nmodels: [{model: a/x}, {model: a/y}]",
            "method 'slerp' takes exactly 1 sources beside the base, got 2",
        ),
        ("merge_method: karcher\nmodels: [{model: a/x}, {model: a/x}]", "models: the model 'x' stands twice"),
        (
            "merge_method: linear\nmodels: [{model: a/x, parameters: {weight: [{filter: q, valeu: 1}]}}]",
            "unknown key 'valeu'; did you mean 'value'?",
        ),
        (
            "merge_method: linear\nmodels: [{model: a/x, parameters: {weight: lots}}]",
            "models[0].parameters.weight: expected a number, got 'lots'",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a/x, layer_range: [2, 5]}]}]",
            "slices[0].sources[0].layer_range: 'x' has 4 layers, and the range ends at 5",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a/x, layer_range: [2, 2]}]}]",
            "layer_range is [first, end) with 0 <= first < end, got [2, 2]",
        ),
        (
            (
                "merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: a/x, layer_range: [0, 2]}, "
                "{model: a/y, layer_range: [0, 3]}]}]"
            ),
            "slices[0].sources[1].layer_range: the sources of a slice have equally many layers, and this is 3",
        ),
        (
            (
                "merge_method: slerp\nbase_model: a/b\nparameters: {t: 1}\n"
                "slices: [{sources: [{model: a/x, layer_range: [0, 1]}]}]"
            ),
            "slices[0]: the base 'b' is not among the sources of this slice",
        ),
        (
            "merge_method: linear\nparameters: {weight: [0, 1]}\nmodels: [{model: a/x}, {model: org/deep}]",
            "the models differ in depth (x 4, deep 6)",
        ),
        (_LINEAR + "tokenizer_source: base", "the tokenizer is to be the base's, and no `base_model` is given"),
        (_LINEAR + "tokenizer_source: a/y", "'a/y' is not among the models that are merged; did you mean 'a/x'?"),
        (_LINEAR + "chat_template: chatml", "chat_template: chat templates are those of the tokenizer here"),
        (
            "merge_method: linear\nmodules: {a: {models: [{model: a/x}]}, b: {models: [{model: a/x}]}}",
            "modules: only the language model is merged by parts, and these are 2 modules",
        ),
        ("merge_method: linear\nmodels: [{model: a+b+c}]", "expected MODEL or MODEL+ADAPTER"),
    ],
)
def test_what_is_not_understood_is_said_with_its_key_path(text: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(text)
    assert fault in str(caught.value)


def test_mergekits_documents_are_told_from_others() -> None:
    assert is_mergekit({"merge_method": "linear"})
    assert not is_mergekit({"recipe": 1})
    assert is_genome({"genome": {}, "tasks": []})
    assert not is_genome({"merge_method": "linear"})


# ---- mergekit-evolve


_GENOME = """
genome:
  models: [a/x, a/y]
  base_model: a/b
  merge_method: dare_ties
  layer_granularity: 2
  filters: [self_attn, mlp]
  tokenizer_source: base
tasks:
  - {name: japanese, weight: 0.4}
  - {name: sums, metric: "exact_match,strict-match"}
limit: 100
num_fewshot: 3
shuffle: true
"""


def test_a_genome_becomes_a_search() -> None:
    found = import_genome(parse_yaml(_GENOME), 8, "suite.yaml")
    assert found.search["space"] == {
        "kind": "parameter",
        "method": "dare_ties",
        "parameters": {
            "weight": [0.0, 1.0],
            "density": [0.01, 1.0],
            "zero_sign": "positive",
            "rescale": "l1",
            "normalize": True,
        },
        "groups": {"layers": 4, "modules": ["attention", "mlp"]},
    }
    assert found.search["fitness"] == {
        "suite": "suite.yaml",
        "objectives": ["0.4 * japanese.acc + sums.exact_match.strict-match"],
    }
    assert list(found.search["sources"]) == ["b", "x", "y"]
    assert (found.search["base"], found.search["tokenizer"]) == ("b", {"from": "b", "missing": "base"})
    assert found.suite["tasks"] == [{"task": name, "num_fewshot": 3, "limit": 100} for name in ("japanese", "sums")]
    assert any(note.startswith("shuffle:") for note in found.notes)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("dare_ties", "dare_tise", "genome.merge_method: mergekit-evolve has no method 'dare_tise'; did you mean"),
        ("layer_granularity: 2", "layer_granularity: 3", "genome.layer_granularity: the models have 8 layers"),
        ("[self_attn, mlp]", "[q_proj]", "genome.filters[0]: a search splits layers by module group"),
        ("base_model: a/b", "tokenizer_source: union", "stands twice"),
        ("  base_model: a/b\n", "", "genome.base_model: method 'dare_ties' needs a base"),
        ("limit: 100", "limits: 100", "unknown key 'limits'; did you mean 'limit'?"),
    ],
)
def test_faults_of_a_genome_are_said(old: str, new: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_genome(parse_yaml(_GENOME.replace(old, new)), 8, "suite.yaml")
    assert fault in str(caught.value)
