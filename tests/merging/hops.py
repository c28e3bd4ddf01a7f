"""Tiny models of many architectures, and what a route through them computes, hop by hop, in float64.

The reference knows nothing of folding: it runs transformers' own layers one after the other, and multiplies the
stream by the hop's scale before each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

Hops = Sequence[tuple[str, int, float]]
"""(alias, layer, scale) of every hop."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
_SLIDING: dict[str, Any] = {"sliding_window": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": _SLIDING,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **_SLIDING},
    "qwen3": {},
    "phi3": {},
    "granite": {"residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "smollm3": {"no_rope_layer_interval": 2},
    "seed_oss": {},
    "starcoder2": {},
    "stablelm": {"qk_layernorm": True},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1]},
    "qwen3_moe": {**_EXPERTS, "decoder_sparse_step": 2},
    "olmoe": _EXPERTS,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **_SLIDING},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": _LATENT | {"topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "gpt_neox": {},
    "bloom": {"n_head": 4},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "phi": {},
    "cohere": {"use_qk_norm": True},
    "cohere2": {"sliding_window_pattern": 2, **_SLIDING},
    "gpt2": _GPT,
    "gptj": _GPT,
    "gemma": {},
    "nemotron": {},
    "gemma2": {**_SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_SLIDING, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    "glm": {},
    "glm4": {},
    "olmo2": {},
    "olmo3": _SLIDING,
    "exaone4": {"sliding_window_pattern": 2, **_SLIDING},
    "olmo": {},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "falcon_mamba": {"state_size": 4},
}
"""What a tiny model of each architecture needs beyond the common sizes."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon")


def write_tiny(folder: Path, kind: str, *, seed: int, layers: int, epsilon: float | None = 0.0, **more: Any) -> Path:
    """Write a tiny random model; the epsilon of its norms is 0 unless told otherwise (None: its own)."""
    sizes = {**_SIZES, **SETTINGS[kind], **more}
    if kind == "falcon":
        del sizes["head_dim"]  # a property there
    if kind in ("olmo3", "gpt_oss"):
        sizes["layer_types"] = [("sliding_attention", "full_attention")[index % 2] for index in range(layers)]
    config = AutoConfig.for_model(kind, **sizes, num_hidden_layers=layers)
    for key in _EPSILONS:
        if epsilon is not None and hasattr(config, key):
            setattr(config, key, epsilon)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2 if parameter.dim() > 1 else 0.1)
    model.save_pretrained(folder)
    return folder


def random_hops(depths: Mapping[str, int], length: int, seed: int, *, negative: bool = True) -> Hops:
    """Draw a route with repeats, and scales in [0.5, 1.5], some of them negative."""
    rng = np.random.default_rng(seed)
    hops: list[tuple[str, int, float]] = []
    for _ in range(length):
        alias = str(rng.choice(sorted(depths)))
        scale = rng.uniform(0.5, 1.5) * (-1 if negative and rng.random() < 0.35 else 1)
        hops.append((alias, int(rng.integers(depths[alias])), scale))
    if negative:
        alias, layer, scale = hops[0]
        hops[0] = (alias, layer, -abs(scale))
    return hops


class _Double(TorchFunctionMode):
    """Keeps float64 where transformers computes norms and softmaxes in float32 whatever it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and func is Tensor.float:
            return args[0]
        if wide:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        if func is nn.functional.layer_norm and kwargs.get("eps") == 1e-5 and kwargs.get("weight") is None:
            kwargs["eps"] = 0.0  # OLMo's norm has neither weights nor a setting for its epsilon
        return func(*args, **kwargs)


@contextmanager
def in_double() -> Iterator[None]:
    with _Double(), torch.no_grad():
        yield


def load(folder: Path) -> Any:
    """Load a checkpoint with plain transformers in float64; every tensor must have its place."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float64,
        output_loading_info=True,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(7))


def logits(model: Any) -> Tensor:
    with in_double():
        found: Tensor = model(input_ids=tokens(), use_cache=False).logits
    return found


def stack(model: Any) -> tuple[nn.Module, str]:
    """Return the module that holds the layers, and under which name."""
    base = model.base_model
    return base, next(name for name in ("layers", "h") if hasattr(base, name))


def hop_by_hop(folders: Mapping[str, Path], hops: Hops, *, embeddings: str, head: str) -> Tensor:
    """Run the layers of a route one after the other, the stream multiplied by each hop's scale before it."""
    sources = {alias: load(folder) for alias, folder in folders.items()}
    model = copy.deepcopy(sources[embeddings])
    base, name = stack(model)
    layers = nn.ModuleList()
    for alias, index, scale in hops:
        other, other_name = stack(sources[alias])
        layer = copy.deepcopy(getattr(other, other_name)[index])
        layer.register_forward_pre_hook(_scaled(scale), with_kwargs=True)
        layers.append(layer)
    setattr(base, name, layers)
    _final(model, sources[head])
    config = base.config
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(vars(config).get(key), list):
            setattr(config, key, [getattr(sources[alias].config, key)[index] for alias, index, _ in hops])
    config.num_hidden_layers = len(hops)
    return logits(model)


def _scaled(scale: float) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] * scale, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale}

    return hook


def _final(model: Any, source: Any) -> None:
    """Take final norm and head of another model."""
    base, other = model.base_model, source.base_model
    for name in ("norm", "norm_f", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(base, name):
            setattr(base, name, copy.deepcopy(getattr(other, name)))
    model.get_output_embeddings().load_state_dict(source.get_output_embeddings().state_dict())
