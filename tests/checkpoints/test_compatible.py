from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evomerge.checkpoints import check_compatible, open_checkpoint, read_vocabulary
from evomerge.errors import SourceError
from evomerge.testing.checkpoints import (
    tiny_llama_config,
    tiny_llama_tensors,
    tiny_tokenizer,
    write_checkpoint,
    write_tiny_llama,
)


def check(one: Path, other: Path, *, same_tokenizer: bool = True) -> None:
    models = {"base": open_checkpoint(one), "math": open_checkpoint(other)}
    check_compatible(models, "base", same_tokenizer=same_tokenizer)


def test_siblings_fit(tmp_path: Path) -> None:
    """Other weights, other shards and another dtype do not matter."""
    one = write_tiny_llama(tmp_path / "one")
    check(one, write_tiny_llama(tmp_path / "two", seed=1, shards=2, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"layers": 3}, "'base' has 2 layers, 'math' has 3 layers"),
        ({"hidden": 8}, "'base' has a hidden size of 16, 'math' has a hidden size of 8"),
        ({"vocab": 40}, r"tokenizers of 'base' and 'math' differ: 'w32' \(absent against 32\), .* and 5 more"),
    ],
)
def test_sizes_that_differ_are_named_with_both_values(tmp_path: Path, sizes: dict[str, int], text: str) -> None:
    one, other = write_tiny_llama(tmp_path / "one"), write_tiny_llama(tmp_path / "two", **sizes)
    with pytest.raises(SourceError, match=text):
        check(one, other)


def test_rows_beyond_one_vocabulary_are_named(tmp_path: Path) -> None:
    config = tiny_llama_config(vocab=40)
    padded = write_checkpoint(tmp_path / "two", config, tiny_llama_tensors(config), tokenizer=tiny_tokenizer())
    with pytest.raises(SourceError, match=r"vocabulary of 32, 'math' has a vocabulary of 40; .*\{from: base\}"):
        check(write_tiny_llama(tmp_path / "one"), padded)


def test_a_tensor_that_one_lacks_is_named(tmp_path: Path) -> None:
    one = write_tiny_llama(tmp_path / "one")
    other = write_tiny_llama(tmp_path / "two", tied=True)
    with pytest.raises(SourceError, match=r"'base' has a tensor 'lm_head\.weight', which 'math' lacks"):
        check(one, other)


def test_a_shape_that_differs_is_named(tmp_path: Path) -> None:
    one = write_tiny_llama(tmp_path / "one")
    tensors = tiny_llama_tensors(tiny_llama_config())
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(30, 16)
    other = write_checkpoint(tmp_path / "two", tiny_llama_config(), tensors)
    with pytest.raises(SourceError, match=r"up_proj\.weight' has the shape \(32, 16\) in 'base' and \(30, 16\) in"):
        check(one, other)


def test_buffers_may_be_missing(tmp_path: Path) -> None:
    """They are never merged, and older exports store them."""
    tensors = tiny_llama_tensors(tiny_llama_config())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.position_ids"] = torch.arange(4)
    check(write_tiny_llama(tmp_path / "one"), write_checkpoint(tmp_path / "two", tiny_llama_config(), tensors))


class TestTokenizers:
    def test_a_token_with_another_id_is_named(self, tmp_path: Path) -> None:
        one = write_tiny_llama(tmp_path / "one")
        tokenizer = tiny_tokenizer()
        vocab = tokenizer["model"]["vocab"]
        vocab["w3"], vocab["w4"], vocab["new"] = 4, 3, 33
        other = write_checkpoint(
            tmp_path / "two",
            tiny_llama_config(),
            tiny_llama_tensors(tiny_llama_config()),
            tokenizer=tokenizer,
        )
        with pytest.raises(SourceError, match=r"'new' \(absent against 33\), 'w3' \(3 against 4\)"):
            check(one, other)
        check(one, other, same_tokenizer=False)

    def test_other_bytes_of_one_vocabulary_fit(self, tmp_path: Path) -> None:
        one, other = write_tiny_llama(tmp_path / "one"), write_tiny_llama(tmp_path / "two")
        (other / "tokenizer.json").write_text(json.dumps(tiny_tokenizer(), indent=4))
        check(one, other)

    def test_a_model_without_tokenizer_is_not_compared(self, tmp_path: Path) -> None:
        one, other = write_tiny_llama(tmp_path / "one"), write_tiny_llama(tmp_path / "two")
        (other / "tokenizer.json").unlink()
        check(one, other)

    def test_a_unigram_vocabulary_counts_positions(self, tmp_path: Path) -> None:
        data = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "c", "id": 7}]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))

        assert read_vocabulary(tmp_path) == {"a": 0, "b": 1, "c": 7}

    @pytest.mark.parametrize("data", [{}, {"model": {"vocab": [1]}}, {"model": {"vocab": {"a": "x"}}}])
    def test_a_file_that_is_no_tokenizer(self, tmp_path: Path, data: object) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        with pytest.raises(SourceError, match="holds no vocabulary"):
            read_vocabulary(tmp_path)
