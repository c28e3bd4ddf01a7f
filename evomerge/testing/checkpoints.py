"""Tiny checkpoints for tests: random weights in the Llama layout, with a word-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def tiny_llama_config(*, layers: int = 2, hidden: int = 16, vocab: int = 32, tied: bool = False) -> dict[str, Any]:
    """Return the `config.json` of a tiny Llama with two heads, one of them a key-value head."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rms_norm_eps": 1e-6,
    }


def tiny_llama_tensors(
    config: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return random weights for `tiny_llama_config`; the head is left out where it is tied."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = hidden // config["num_attention_heads"]
    rng = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (0.2 * torch.randn(rows, columns, generator=rng)).to(dtype)

    def norm() -> Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=rng)).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", head, hidden),
            ("self_attn.v_proj", head, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            tensors[f"{prefix}{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = norm()
    return tensors


def tiny_tokenizer(vocab: int = 32) -> dict[str, Any]:
    """Return a `tokenizer.json` of so many words."""
    return word_tokenizer(["<unk>", "<s>", "</s>", *(f"w{index}" for index in range(3, vocab))])


def word_tokenizer(words: Sequence[str]) -> dict[str, Any]:
    """Return a `tokenizer.json` of words, whose ids are their places; those in `<...>` are special."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": word, **special} for index, word in enumerate(words) if word.startswith("<")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Write a Hugging Face checkpoint folder with the safetensors library itself, and return it.

    Args:
        folder: made if need be.
        config: `config.json`.
        tensors: all weights.
        tokenizer: `tokenizer.json`; None: no tokenizer.
        shards: number of weights files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(kind), encoding="utf-8")
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata=metadata)
        return folder
    weight_map: dict[str, str] = {}
    for number in range(shards):
        names = sorted(tensors)[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_tiny_llama(
    folder: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32, shards: int = 1, **sizes: Any
) -> Path:
    """Write a tiny random Llama with its tokenizer, and return its folder.

    Args:
        folder: made if need be.
        seed: of the weights.
        dtype: of the weights.
        shards: number of weights files.
        sizes: as `tiny_llama_config` takes them.
    """
    config = {**tiny_llama_config(**sizes), "dtype": str(dtype).removeprefix("torch.")}
    tensors = tiny_llama_tensors(config, seed, dtype)
    return write_checkpoint(folder, config, tensors, tokenizer=tiny_tokenizer(config["vocab_size"]), shards=shards)
