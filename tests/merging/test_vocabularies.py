"""Recipes over sources of different vocabularies: opened, identified, merged, written, loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.checkpoints import StatisticNote, open_checkpoint, unaligned, write_statistic
from evomerge.checkpoints.statistics import importance_scales
from evomerge.errors import NotBuiltError, RecipeError, SourceError
from evomerge.merging import build, materialise, open_sources, plan
from evomerge.merging.passthrough import to_mergekit
from evomerge.recipe import Recipe, identity, read_recipe
from evomerge.testing.adapters import write_lora
from evomerge.testing.checkpoints import (
    tiny_llama_config,
    tiny_llama_tensors,
    tiny_tokenizer,
    word_tokenizer,
    write_checkpoint,
)

VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")
A = ["<unk>", "<s>", "</s>", "x", "y", "z"]
B = ["<unk>", "y", "<s>", "q", "</s>", "z", "r"]
UNION = [*A, "q", "r"]


def write(folder: Path, tokens: Sequence[str], seed: int, **keys: Any) -> Path:
    config = {**tiny_llama_config(vocab=len(tokens), layers=keys.pop("layers", 2)), **keys}
    return write_checkpoint(folder, config, tiny_llama_tensors(config, seed), tokenizer=word_tokenizer(tokens))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a", A, 0, eos_token_id=2)
    write(tmp_path / "b", B, 1, eos_token_id=4)
    return tmp_path


def recipe(tokenizer: Any, weights: dict[str, float] | None = None, **keys: Any) -> Recipe:
    weights = weights or {"a": 0.25, "b": 0.75}
    data = {
        "recipe": 1,
        "sources": {alias: {"model": alias} for alias in "ab"},
        "base": "a",
        "dtype": "float32",
        "tokenizer": tokenizer,
        "blend": {"method": "linear", "weight": weights},
        **keys,
    }
    return Recipe.from_mapping({key: value for key, value in data.items() if value is not None})


def merged(one: Recipe, folder: Path, **keys: Any) -> dict[str, Tensor]:
    return dict(materialise(plan(one, open_sources(one, folder, **keys))))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_vocabularies_that_differ_without_a_rule_are_refused_by_their_tokens(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=r"'<s>' \(1 against 2\), 'q' \(absent against 3\) and 3 more; .*\{union: \[a, b\]\}"
    ):
        open_sources(recipe(None), folder)


@pytest.mark.parametrize("alias", ["a", "b"])
@pytest.mark.parametrize(
    "tokenizer", [{"union": ["a", "b"]}, {"union": ["b", "a"], "missing": "zero", "pad_to_multiple_of": 16}]
)
def test_a_source_alone_answers_as_before_in_its_own_tokens(folder: Path, alias: str, tokenizer: Any) -> None:
    """Loaded by plain transformers, tokenizer and all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build(recipe(tokenizer, {alias: 1.0}), folder / "out", base_dir=folder)
    before = AutoModelForCausalLM.from_pretrained(folder / alias)
    after = AutoModelForCausalLM.from_pretrained(folder / "out")
    words, tokens = AutoTokenizer.from_pretrained(folder / alias), AutoTokenizer.from_pretrained(folder / "out")
    text = " ".join(reversed({"a": A, "b": B}[alias]))
    columns = tokens.convert_tokens_to_ids(words.convert_ids_to_tokens(range(len(words))))
    with torch.no_grad():
        expected = before(torch.tensor([words(text)["input_ids"]])).logits
        found = after(torch.tensor([tokens(text)["input_ids"]])).logits

    assert set(tokens.get_vocab()) == set(UNION)
    assert after.config.vocab_size == after.get_input_embeddings().num_embeddings == found.shape[-1]
    torch.testing.assert_close(found[..., columns], expected, rtol=1e-6, atol=1e-6)


def test_what_goes_beside_the_weights_is_that_of_the_source_whose_ids_are_kept(folder: Path) -> None:
    """Configuration of the base, ids of its special tokens and template of the tokenizer's source."""
    for alias, end in (("a", 2), ("b", 4)):
        (folder / alias / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
        (folder / alias / "chat_template.jinja").write_text(f"{alias}: {{{{ messages[0]['content'] }}}}")
    one = recipe({"union": ["b", "a"]})
    report = build(one, folder / "out", base_dir=folder)
    config = json.loads((folder / "out" / "config.json").read_text())

    assert (config["vocab_size"], config["eos_token_id"]) == (8, 4)
    assert json.loads((folder / "out" / "generation_config.json").read_text()) == {"eos_token_id": 4}
    assert (folder / "out" / "chat_template.jinja").read_text().startswith("b: ")
    again = read_recipe(folder / "out" / "recipe.yaml")
    assert identity(again, open_sources(again, folder / "out").infos) == report.recipe_id


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(len(A))),
    method=st.sampled_from(["linear", "slerp", "ties", "karcher"]),
    keeper=st.sampled_from(["a", "b"]),
)
def test_merging_a_permuted_source_is_merging_the_unpermuted_one(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], method: str, keeper: str
) -> None:
    folder = tmp_path_factory.mktemp("permuted")
    write(folder / "a", A, 0, layers=1)
    plain = open_checkpoint(write(folder / "plain", A, 1, layers=1))
    tensors = {name: plain.tensor(name) for name in plain.names()}
    tensors |= {name: tensors[name][torch.tensor(order)] for name in VOCABULARY_TENSORS}
    tokens = [A[index] for index in order]
    write_checkpoint(folder / "turned", dict(plain.config), tensors, tokenizer=word_tokenizer(tokens))
    params = {"slerp": {"t": 0.3}, "ties": {"weight": {"b": 0.9}, "density": 0.5}}.get(method, {})
    blend = {"method": method, **params}

    def of(model: str) -> dict[str, Tensor]:
        sources = {"a": {"model": "a"}, "b": {"model": model}}
        return merged(recipe({"from": keeper}, sources=sources, blend=blend), folder)

    expected, found = of("plain"), of("turned")
    if keeper == "b":
        found |= {name: found[name][torch.tensor(order).argsort()] for name in VOCABULARY_TENSORS}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


class TestSources:
    def test_adapters_on_a_model_come_along(self, folder: Path) -> None:
        write_lora(folder / "lora", folder / "b", 5, modules=("embed_tokens", "q_proj"))
        sources = {"a": {"model": "a"}, "b": {"model": "b", "adapter": "lora"}}
        alone = {"sources": {"b": sources["b"]}, "base": None}
        build(recipe(None, {"b": 1.0}, **alone), folder / "b-written", base_dir=folder)
        rule = {"union": ["a", "b"]}

        found = merged(recipe(rule, sources=sources), folder)
        written = {"a": sources["a"], "b": {"model": "b-written"}}
        torch.testing.assert_close(found, merged(recipe(rule, sources=written), folder), rtol=0, atol=3e-7)

    def test_factors_whose_rows_move_are_not_added(self, folder: Path) -> None:
        rule = {"union": ["a", "b"]}
        sources = {**{alias: {"model": alias} for alias in "ab"}, "c": {"model": "a", "adapter": "lora"}}
        one = recipe(rule, sources=sources, blend={"method": "evo_merging", "weight": {"c": 0.5}})
        write_lora(folder / "lora", folder / "a", 5, modules=("q_proj",))
        assert merged(one, folder)["model.embed_tokens.weight"].shape == (8, 16)
        write_lora(folder / "lora", folder / "a", 5, modules=("embed_tokens", "q_proj"))
        with pytest.raises(RecipeError, match=r"sources\.c: .* changes the embeddings, whose rows `tokenizer` moves"):
            merged(one, folder)

    def test_a_nested_recipe_has_a_vocabulary_of_its_own(self, folder: Path) -> None:
        inner = recipe({"union": ["a", "b"]})
        build(inner, folder / "inner", base_dir=folder)
        write(folder / "c", [*reversed(UNION), "w"], 7)
        made = []
        for model in (inner.to_mapping(), "inner"):
            sources = {"c": {"model": "c"}, "m": {"model": model}}
            weights = {"c": 0.5, "m": 0.5}
            made.append(merged(recipe({"from": "c"}, weights, sources=sources, base="c"), folder))
        torch.testing.assert_close(made[0], made[1], rtol=0, atol=3e-7)

    def test_what_was_measured_moves_with_the_rows(self, folder: Path) -> None:
        """Of rows that are not a source's own nothing was measured: those that have them decide."""
        measured = {}
        for seed, alias in enumerate("ab"):
            model = open_checkpoint(folder / alias)
            generator = torch.Generator().manual_seed(seed)
            tensors = {name: torch.rand(model.info(name).shape, generator=generator) + 0.1 for name in model.names()}
            note = StatisticNote(
                kind="fisher", source=model.content_hash, calibration="0", **importance_scales(tensors.values())
            )
            write_statistic(folder / "stats" / alias / "fisher.safetensors", note, tensors)
            measured[alias] = tensors
        sources = {alias: {"model": alias, "statistics": f"stats/{alias}"} for alias in "ab"}
        blend = {"method": "fisher", "floor": 0.0, "normalize": False}
        found = merged(recipe({"union": ["a", "b"]}, sources=sources, base=None, blend=blend), folder)

        name = "model.embed_tokens.weight"
        rows = {alias: open_checkpoint(folder / alias).tensor(name) for alias in "ab"}
        torch.testing.assert_close(found[name][UNION.index("x")], rows["a"][A.index("x")])
        torch.testing.assert_close(found[name][UNION.index("q")], rows["b"][B.index("q")])
        pairs = [
            (measured[alias][name][own.index("z")], rows[alias][own.index("z")])
            for alias, own in zip("ab", (A, B), strict=True)
        ]
        exact = sum(f * w for f, w in pairs) / sum(f for f, _ in pairs)
        torch.testing.assert_close(found[name][UNION.index("z")], exact)

    def test_of_other_depth_make_routes(self, folder: Path) -> None:
        write(folder / "b", B, 1, layers=3)
        layers = [{"take": {"a": 0}}, {"take": {"b": 2}}, {"take": {"b": 0}}]
        one = recipe({"union": ["a", "b"]}, layers=layers, embeddings={"take": ["b"]}, head={"take": ["a"]})
        found = merged(one, folder)
        b = open_checkpoint(folder / "b")
        assert torch.equal(
            found["model.embed_tokens.weight"][UNION.index("r")], b.tensor("model.embed_tokens.weight")[6]
        )
        assert torch.equal(found["model.layers.1.mlp.up_proj.weight"], b.tensor("model.layers.2.mlp.up_proj.weight"))

    def test_resident_ones_are_kept_when_a_recipe_is_opened_again(self, folder: Path) -> None:
        one = recipe({"union": ["a", "b"]})
        sources = open_sources(one, folder, resident=True)
        again = open_sources(one, folder, resident=True, like=sources)
        assert again.models == sources.models
        other = open_sources(recipe({"from": "a"}), folder, like=sources)
        assert [unaligned(other.models[alias]) for alias in "ab"] == [unaligned(again.models[alias]) for alias in "ab"]
        assert equal(dict(materialise(plan(one, sources))), merged(one, folder))


class TestIdentity:
    def test_tells_rules_apart(self, folder: Path) -> None:
        rules: list[dict[str, Any]] = [
            {"from": "a"},
            {"from": "a", "missing": "zero"},
            {"from": "b"},
            {"union": ["a", "b"]},
            {"union": ["b", "a"]},
            {"union": ["a", "b"], "missing": "base"},
            {"union": ["a", "b"], "pad_to_multiple_of": 16},
            {"union": ["a", "b"], "tokens": {"q": {"zero": True}}},
        ]
        one = [identity(recipe(rule), open_sources(recipe(rule), folder).infos) for rule in rules]
        assert len(set(one)) == len(rules)

    def test_depends_on_the_vocabularies(self, folder: Path) -> None:
        """The same weights under other tokens are other rows."""
        one = recipe({"from": "a"})
        before = identity(one, open_sources(one, folder).infos)
        (folder / "b" / "tokenizer.json").write_text(json.dumps(word_tokenizer([B[0], *B[:0:-1]])))
        assert identity(one, open_sources(one, folder).infos) != before

    def test_does_not_depend_on_aliases(self, folder: Path) -> None:
        one = recipe({"union": ["a", "b"]})
        text = json.dumps(one.to_mapping()).replace('"b"', '"other"').replace('{"model": "other"}', '{"model": "b"}')
        other = Recipe.from_mapping(json.loads(text))
        assert identity(other, open_sources(other, folder).infos) == identity(one, open_sources(one, folder).infos)

    def test_a_rule_that_moves_nothing_changes_no_source(self, tmp_path: Path) -> None:
        for seed, alias in enumerate("ab"):
            config = tiny_llama_config()
            write_checkpoint(tmp_path / alias, config, tiny_llama_tensors(config, seed), tokenizer=tiny_tokenizer())
        aligned, plain = (open_sources(recipe(rule), tmp_path) for rule in ({"union": ["a", "b"]}, None))
        assert aligned.infos == plain.infos
        assert equal(*(dict(materialise(plan(recipe(None), sources))) for sources in (aligned, plain)))


class TestRefusals:
    def test_a_candidate_has_the_vocabulary_that_was_opened(self, folder: Path) -> None:
        sources = open_sources(recipe({"union": ["a", "b"]}), folder)
        some = recipe({"from": "a"}, {"a": 1.0}, sources={"a": {"model": "a"}})
        for other in (recipe({"from": "a"}), recipe(None), some):
            with pytest.raises(RecipeError, match="tokenizer: the sources were opened for another vocabulary"):
                plan(other, sources)

    def test_moved_rows_are_not_exported_to_mergekit(self, folder: Path) -> None:
        one = recipe({"from": "a"}, {"b": 1.0})
        with pytest.raises(NotBuiltError, match="tokenizer: mergekit has other rules"):
            to_mergekit(plan(one, open_sources(one, folder)))
