"""Tiny random models of the architectures that merging is proven on, and what plain transformers computes from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.merging.hops import write_tiny

CAUSAL = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "mamba",
    "mamba2",
)
KINDS = (*CAUSAL, "gemma3", "bert", "vit")
"""`gemma3` is the multimodal one, whose language model is nested; the last two are encoders."""
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
_IMAGES: dict[str, Any] = {"image_size": 28, "patch_size": 14}
_TEXT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "sliding_window": 3,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 8,
    "max_position_embeddings": 64,
}


def write_model(folder: Path, kind: str, seed: int, **more: Any) -> Path:
    """Write a tiny random model with transformers' own `save_pretrained`.

    Args:
        folder: made if need be.
        kind: one of `KINDS`.
        seed: of the weights.
        more: settings of a causal model, such as `tie_word_embeddings`.
    """
    if kind in CAUSAL:
        return write_tiny(folder, kind, seed=seed, layers=2, epsilon=None, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _other(kind).save_pretrained(folder)
    return folder


def _other(kind: str) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        BertConfig,
        BertForMaskedLM,
        Gemma3Config,
        ViTConfig,
        ViTForImageClassification,
    )

    if kind == "bert":
        return BertForMaskedLM(BertConfig(**_SIZES, vocab_size=61, max_position_embeddings=64))
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**_SIZES, **_IMAGES, num_labels=5))
    config = Gemma3Config(
        text_config={**_SIZES, **_TEXT},
        vision_config={**_SIZES, **_IMAGES},
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=58,
        eoi_token_index=59,
    )
    return AutoModelForCausalLM.from_config(config)


def shard(folder: Path, size: str = "20KB") -> Path:
    """Write a causal model again in shards, as transformers cuts them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def computed(folder: Path, kind: str) -> Tensor:
    """Return the logits that plain transformers computes from a checkpoint, every tensor of which it must use."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM

    loader = {"bert": AutoModelForMaskedLM, "vit": AutoModelForImageClassification}.get(kind, AutoModelForCausalLM)
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs(kind)).logits
    return found


def inputs(kind: str) -> dict[str, Tensor]:
    """Return fixed random inputs."""
    draw = torch.Generator().manual_seed(7)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 28, 28, generator=draw)}
    return {"input_ids": torch.randint(3, 57, (2, 9), generator=draw)}


def stored(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, from however many files, with the safetensors library alone."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    return found


def mean(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the average of two state dicts, made in float64 by NumPy and rounded to float32 once."""
    assert one.keys() == other.keys()
    return {
        name: torch.from_numpy(
            np.asarray((one[name].numpy().astype(np.float64) + other[name].numpy()) / 2).astype(np.float32)
        )
        for name in one
    }


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace the weights of a checkpoint in one file."""
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
