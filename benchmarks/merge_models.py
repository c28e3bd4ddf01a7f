"""Random models of Llama's shape, on disk or in memory, for `merge_speed.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints import CheckpointWriter, TensorInfo
from evomerge.checkpoints.layout import Layout

_SPREAD = 0.02
_TUNED = 1e-3
"""Standard deviation of what tuning adds, about ten steps of bfloat16."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    layers: int
    hidden: int = 2048
    intermediate: int = 5632
    vocabulary: int = 32000
    heads: int = 32
    key_heads: int = 4

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor, by its name."""
        wide, narrow = self.hidden, self.hidden // self.heads * self.key_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, wide),
            "lm_head.weight": (self.vocabulary, wide),
            "model.norm.weight": (wide,),
        }
        for layer in range(self.layers):
            first = f"model.layers.{layer}."
            for name, rows in (("q", wide), ("k", narrow), ("v", narrow), ("o", wide)):
                shapes[f"{first}self_attn.{name}_proj.weight"] = (rows, wide)
            for name in ("gate", "up"):
                shapes[f"{first}mlp.{name}_proj.weight"] = (self.intermediate, wide)
            shapes[f"{first}mlp.down_proj.weight"] = (wide, self.intermediate)
            shapes[f"{first}input_layernorm.weight"] = (wide,)
            shapes[f"{first}post_attention_layernorm.weight"] = (wide,)
        return {name: TensorInfo(shape, torch.bfloat16) for name, shape in sorted(shapes.items())}

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(info.num_elements for info in self.infos.values())


SHAPES = {"1.1b": Shape(22), "7b": Shape(32, 4096, 14336, 32000, 32, 8), "tiny": Shape(2, 256, 704, 2000, 8, 4)}


def draw(name: str, info: TensorInfo, number: int, device: str = "cpu") -> Tensor:
    """Return a tensor of model `number`; 0 is the base, the others lie near it."""
    values = torch.randn(info.shape, generator=_generator(name, 0, device), device=device).mul_(_SPREAD)
    if number:
        tuned = torch.randn(info.shape, generator=_generator(name, number, device), device=device)
        values.add_(tuned, alpha=_TUNED)
    return values.to(info.dtype)


def _generator(name: str, number: int, device: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(f"{number} {name}".encode()).digest()[:8])
    return torch.Generator(device).manual_seed(seed >> 1)


def write_model(folder: Path, shape: Shape, number: int) -> None:
    """Write a model as a checkpoint, unless it is there."""
    if folder.exists():
        return
    with CheckpointWriter(folder, shape.infos) as writer:
        writer.add(lambda inside: _write_config(inside, shape))
        for name, info in shape.infos.items():
            writer.write(name, draw(name, info, number))


def _write_config(folder: Path, shape: Shape) -> None:
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2))


@dataclass
class RandomModel:
    """A source whose tensors are drawn on a device, once, and stay there."""

    shape: Shape
    number: int
    device: str = "cpu"
    folder: Path = Path("random")
    tied: Mapping[str, str] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration."""
        return self.shape.config

    @cached_property
    def layout(self) -> Layout:
        """Which tensor belongs where."""
        return Layout(self.shape.infos, self.config, "random")

    @cached_property
    def content_hash(self) -> str:
        """Which model it is."""
        return hashlib.sha256(f"{self.shape} {self.number}".encode()).hexdigest()

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors."""
        return tuple(self.shape.infos)

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor."""
        return self.shape.infos[name]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor."""
        if name not in self.drawn:
            self.drawn[name] = draw(name, self.shape.infos[name], self.number, self.device)
        return self.drawn[name]
