from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import Blocks, open_checkpoint
from evomerge.errors import NotBuiltError
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, write_checkpoint


def llama(folder: Path, *, without: str = "", extra: tuple[str, ...] = (), **keys: Any) -> Path:
    config = {**tiny_llama_config(), **keys}
    tensors = {
        name: tensor for name, tensor in tiny_llama_tensors(config).items() if not without or without not in name
    }
    return write_checkpoint(folder, config, tensors | {name: torch.zeros(16) for name in extra})


def test_roles_of_a_block_with_norms_before_its_branches(tmp_path: Path) -> None:
    blocks = Blocks(open_checkpoint(llama(tmp_path, extra=("model.layers.1.mlp.down_proj.bias",))), "m")

    assert {part: blocks.role(f"{part}.weight") for part in ("input_layernorm", "post_attention_layernorm")} == {
        "input_layernorm": "reader_norm",
        "post_attention_layernorm": "reader_norm",
    }
    assert blocks.role("self_attn.o_proj.weight") == blocks.role("mlp.down_proj.bias") == "writer"
    assert blocks.role("self_attn.q_proj.weight") == blocks.role("mlp.gate_proj.weight") == "inner"
    assert blocks.final_norm == "model.norm.weight"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model_type": "novel"}, "source 'm': how blocks of the architecture 'novel' read and write"),
        ({"extra": ("model.layers.1.layer_scale",)}, r"what tensor 'model\.layers\.1\.layer_scale' does"),
        ({"extra": ("model.layers.0.pre_mlp_layernorm.weight",)}, "what tensor .*pre_mlp_layernorm"),
        ({"without": "layernorm"}, r"layer 0 is not a block of 'llama' as evomerge knows it \(norms: none\)"),
        ({"without": "model.norm"}, "one final norm was expected .* found none"),
        ({"model_type": "olmo2"}, "what tensor .*input_layernorm"),
        ({"model_type": "olmo2", "without": "input_layernorm"}, r"not a block of 'olmo2' .*post_attention_layernorm\)"),
        ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
    ],
)
def test_nobody_guesses(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    """What is not exactly as the table says is refused by name."""
    with pytest.raises(NotBuiltError, match=text):
        Blocks(open_checkpoint(llama(tmp_path, **keys)), "m")
