"""Tiny random Llama models with a character tokenizer, and local lm-eval tasks over them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARACTERS = "0123456789+-=?: abcdefghijklmnopqrstuvwxyz\n"


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = special = ["<pad>", "<eos>", "<unk>"]
    words = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown
    ).save_pretrained(folder)


def _write_model(folder: Path, seed: int, *, tied: bool = False) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tasks(folder: Path) -> Path:
    """Write four tasks: generation with two filters, generation with one, multiple choice, likelihood."""
    folder.mkdir()
    draw = random.Random(0)  # noqa: S311  test data
    rows = []
    for _ in range(60):
        left, right = draw.randrange(10), draw.randrange(10)
        question = f"{left}+{right}="
        rows.append(
            {
                "question": question,
                "answer": str(left + right),
                "choices": [str(left + right), str(left + right + 1), "x"],
                "gold": 0,
                "word": "".join(draw.choice("abcdef") for _ in range(draw.randrange(2, 7))),
            }
        )
    (folder / "data").mkdir()
    for part, chosen in (("test", rows[:40]), ("train", rows[40:])):
        lines = "".join(json.dumps(row) + "\n" for row in chosen)
        (folder / "data" / f"{part}.jsonl").write_text(lines)
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **COMMON, **task}))
    return folder


COMMON: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/test.jsonl", "train": "data/train.jsonl"}},
    "test_split": "test",
    "training_split": "train",
}
_EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "sums": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 2,
        "fewshot_delimiter": "\n",
        "fewshot_split": "train",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [_EXACT],
    },
    "filtered-sums": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [_EXACT],
        "filter_list": [
            {
                "name": "first-number",
                "filter": [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}],
            },
            {"name": "raw", "filter": [{"function": "take_first"}]},
        ],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "words": {
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": "{{word}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{word}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    },
}


def _write_suite(folder: Path, tasks: list[dict[str, Any]], **keys: Any) -> Path:
    path = folder / "suite.yaml"
    splits = {"search": 0.5, "validation": 0.25, "test": 0.25}
    path.write_text(yaml.safe_dump({"suite": 1, "include": "tasks", "tasks": tasks, "splits": splits, **keys}))
    return path


ALL_TASKS = [{"task": name} for name in TASKS]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models (`base`, `one`, `two`), task files and a suite of all of them."""
    folder = tmp_path_factory.mktemp("fitness")
    for seed, name in enumerate(("base", "one", "two")):
        _write_model(folder / name, seed)
    write_tasks(folder / "tasks")
    _write_suite(folder, ALL_TASKS)
    return folder


@pytest.fixture(scope="session")
def write_suite() -> Callable[..., Path]:
    """Write a suite file: `write_suite(folder, [{"task": ...}], **keys)`."""
    return _write_suite


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Write a tiny model: `write_model(folder, seed, tied=False)`."""
    return _write_model
