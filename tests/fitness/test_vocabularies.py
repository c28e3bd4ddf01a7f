"""Recipes whose sources have other vocabularies, in the transformers engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.merging import build
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, word_tokenizer, write_checkpoint

A = ["<unk>", "<s>", "</s>", "x", "y", "z"]
B = ["<unk>", "y", "<s>", "q", "</s>", "z", "r"]
UNION = {"union": ["a", "b"]}


def recipe(folder: Path, weight: float, tokenizer: Any = UNION, **keys: Any) -> Recipe:
    data = {
        "recipe": 1,
        "sources": {alias: {"model": str(folder / alias)} for alias in "ab"},
        "base": "a",
        "dtype": "float32",
        "tokenizer": tokenizer,
        "blend": {"method": "linear", "weight": {"a": 1 - weight, "b": weight}},
        **keys,
    }
    return Recipe.from_mapping({key: value for key, value in data.items() if value is not None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies")
    for seed, (alias, tokens) in enumerate({"a": A, "b": B}.items()):
        config = tiny_llama_config(vocab=len(tokens))
        write_checkpoint(folder / alias, config, tiny_llama_tensors(config, seed), tokenizer=word_tokenizer(tokens))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(recipe(folder, 0.5), base_dir=folder, config=EngineConfig(device="cpu"), batch_size=2)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"layers": [{"take": {"b": 1}}, {"take": {"a": 0}}, {"take": {"a": 1}}], "head": {"take": ["b"]}},
        {"base": "b"},
    ],
)
def test_what_is_served_is_the_exported_checkpoint(
    folder: Path, tmp_path: Path, engine: TransformersEngine, keys: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    candidate = recipe(folder, 0.3, **keys)
    build(candidate, tmp_path / "out", base_dir=folder)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    engine.load(candidate)
    ids = words("x q y r z", return_tensors="pt")["input_ids"]

    assert words.get_vocab() == engine.lm.tokenizer.get_vocab()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, engine.lm.model(ids).logits)


def test_tokens_are_those_of_the_union(engine: TransformersEngine) -> None:
    assert engine.lm.tokenizer("x q y r")["input_ids"] == [3, 6, 4, 7]
    assert engine.lm.model.config.vocab_size == 8


def test_a_recipe_of_another_vocabulary_is_refused(folder: Path, engine: TransformersEngine) -> None:
    engine.load(recipe(folder, 0.2))
    for tokenizer in ({"from": "a"}, {"union": ["b", "a"]}):
        with pytest.raises(SourceError, match="another vocabulary than the search"):
            engine.load(recipe(folder, 0.5, tokenizer))
    alone = recipe(
        folder, 0.0, None, sources={"a": {"model": str(folder / "a")}}, base=None, blend={"method": "linear"}
    )
    with pytest.raises(SourceError, match="another vocabulary than the search"):
        engine.load(alone)
    engine.load(recipe(folder, 0.2))
