"""A search over models of different vocabularies, and depths, from a search file to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.run.export import export_checkpoint
from evomerge.run.replay import verify
from evomerge.run.session import start
from evomerge.run.view import load_run
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, word_tokenizer, write_checkpoint
from tests.run.small import small_search, write_problem

SPACES: dict[str, Any] = {
    "parameter": {"method": "task_arithmetic", "groups": {"layers": 2}},
    "data flow": {"kind": "data_flow", "encoding": "hop_scales", "repeats": 1, "order": ["base", "letters"]},
}


@pytest.mark.parametrize("kind", SPACES)
def test_what_is_scored_is_exported(tmp_path: Path, kind: str) -> None:
    write_problem(tmp_path)
    words = ["<unk>", "<s>", "</s>", "new", *(f"w{index}" for index in range(31, 2, -1))]
    config = tiny_llama_config(vocab=len(words), layers=3 if kind == "data flow" else 2)
    write_checkpoint(tmp_path / "letters", config, tiny_llama_tensors(config, 1), tokenizer=word_tokenizer(words))
    tokenizer = {"union": ["base", "letters"]}
    search = small_search(tmp_path, evaluations=4, space=SPACES[kind], tokenizer=tokenizer)
    path, model = tmp_path / "run", tmp_path / "model"
    start(search, path)
    run = load_run(path)

    assert run.status()["evaluations"]["done"] == 4
    assert verify(path).candidates == len(run.state.asked)
    export_checkpoint(path, model, "0")
    assert AutoTokenizer.from_pretrained(model)("w31 new w3")["input_ids"] == [31, 32, 3]
    assert AutoModelForCausalLM.from_pretrained(model).config.vocab_size == 33
