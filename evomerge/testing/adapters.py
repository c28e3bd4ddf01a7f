"""LoRA adapters for tests: random factors in PEFT's files, written without PEFT."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evomerge.checkpoints import open_checkpoint

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def write_lora(
    folder: Path,
    model: Path,
    seed: int = 0,
    *,
    rank: int = 4,
    modules: Collection[str] = (*ATTENTION, *MLP),
    size: float = 0.1,
    **settings: Any,
) -> Path:
    """Write a LoRA adapter with random factors for a model, and return its folder.

    Args:
        folder: made if need be.
        model: the checkpoint folder that it is for.
        seed: of the factors.
        rank: of every factor.
        modules: last parts of the names of the linear layers that it adapts.
        size: standard deviation of the factors' elements.
        settings: more keys of `adapter_config.json`, or other values of them.
    """
    base = open_checkpoint(model)
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in base.names():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            rows, columns = base.info(name).shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = size * torch.randn(rank, columns, generator=rng)
            tensors[f"base_model.model.{module}.lora_B.weight"] = size * torch.randn(rows, rank, generator=rng)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
