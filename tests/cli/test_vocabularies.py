"""`evomerge merge` over models of different vocabularies, from a native recipe and from a mergekit file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, word_tokenizer, write_checkpoint
from tests.cli.conftest import Cli

A = ["<unk>", "<s>", "</s>", "x", "y", "z"]
B = ["<unk>", "y", "<s>", "q", "</s>", "z", "r"]
NATIVE = """
recipe: 1
sources: {a: {model: a}, b: {model: b}}
base: a
dtype: float32
blend: {method: task_arithmetic, weight: 0.5}
"""
MERGEKIT = """
merge_method: task_arithmetic
base_model: a
models: [{model: b, parameters: {weight: 0.5}}]
dtype: float32
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, (alias, tokens) in enumerate({"a": A, "b": B}.items()):
        config = tiny_llama_config(vocab=len(tokens))
        write_checkpoint(tmp_path / alias, config, tiny_llama_tensors(config, seed), tokenizer=word_tokenizer(tokens))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (NATIVE, "tokenizer: {union: [a, b], missing: base, pad_to_multiple_of: 4}"),
        (MERGEKIT, "tokenizer: {source: union, pad_to_multiple_of: 4}"),
    ],
)
def test_a_union_loads_with_plain_transformers(models: Path, cli: Cli, text: str, rule: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (models / "merge.yaml").write_text(text + rule)
    said = cli("merge", models / "merge.yaml", models / "out")
    assert said.code == 0, said.err
    tokens = AutoTokenizer.from_pretrained(models / "out")
    model = AutoModelForCausalLM.from_pretrained(models / "out")
    old = {alias: AutoModelForCausalLM.from_pretrained(models / alias) for alias in "ab"}
    rows = {alias: one.get_output_embeddings().weight for alias, one in old.items()}

    assert tokens("x q r z")["input_ids"] == [3, 6, 7, 5]
    found = model.get_output_embeddings().weight
    assert found.shape == (8, 16)
    torch.testing.assert_close(found[3], rows["a"][3])  # b lacks `x` and has the base's
    torch.testing.assert_close(found[7], rows["b"][6])
    torch.testing.assert_close(found[5], (rows["a"][5] + rows["b"][5]) / 2)


def test_a_mismatch_without_a_rule_names_the_tokens(models: Path, cli: Cli) -> None:
    (models / "merge.yaml").write_text(NATIVE)
    said = cli("merge", models / "merge.yaml", models / "out")
    said.is_refusal("the tokenizers of 'a' and 'b' differ", "'q' (absent against 3)", "tokenizer: {from: a}")
    assert not (models / "out").exists()
