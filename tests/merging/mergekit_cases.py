"""Merges that are compared with mergekit's own: configurations, and the models that they name."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.operators.noise import noise
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, write_checkpoint

_HEAD = "dtype: float32\n"


def _models(method: str, *names: str, base: str | None = "base", common: str = "{}", **each: str) -> str:
    lines = [f"merge_method: {method}", f"parameters: {common}", "models:"]
    lines += [f"  - {{model: {name}, parameters: {each.get(name, '{}')}}}" for name in names]
    if base is not None:
        lines.append(f"base_model: {base}")
    return _HEAD + "\n".join(lines) + "\n"


_WEIGHTS = {"math": "{weight: 0.7}", "ja": "{weight: 0.4}", "code": "{weight: 0.3}"}
_SPARSE = {
    "math": "{weight: 0.7, density: 0.5}",
    "ja": "{weight: 0.4, density: 0.3}",
    "code": "{weight: 0.3, density: 0.85}",
}
_THREE = ("math", "ja", "code")

CASES: dict[str, str] = {
    "linear": _models("linear", *_THREE, base=None, **_WEIGHTS),
    "linear, base among the models": _models("linear", "base", "math", common="{weight: 0.5}"),
    "linear, sum": _models("linear", *_THREE, base=None, common="{normalize: false}", **_WEIGHTS),
    "linear, gradients": _models(
        "linear",
        "math",
        "ja",
        base=None,
        math="{weight: [0, 0.2, 1]}",
        ja="{weight: [{filter: self_attn, value: [1, 0.3]}, {filter: mlp.up_proj, value: 0.9}, {value: 0.5}]}",
    ),
    "linear, filters": _models(
        "linear",
        "math",
        "ja",
        base=None,
        math="{weight: [{filter: norm, value: 0.1}, {filter: v_proj, value: 0.2}, {value: 0.3}]}",
        ja="{weight: [{filter: 'layers.1.', value: 0.8}, {filter: lm_head, value: 0.6}, {value: 0.4}]}",
    ),
    "slerp": _models("slerp", "base", "math", common="{t: 0.3}"),
    "slerp, near": _models("slerp", "near", common="{t: 0.6}"),
    "slerp, gradients": """
        slices:
          - sources: [{model: base, layer_range: [0, 3]}, {model: math, layer_range: [0, 3]}]
        merge_method: slerp
        base_model: base
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - {value: 0.5}
        dtype: float32
        """,
    "slerp, a base for each slice": """
        slices:
          - sources: [{model: base, layer_range: [0, 2]}, {model: math, layer_range: [0, 2]}]
            parameters: {t: 0.25}
          - sources: [{model: ja, layer_range: [1, 3]}, {model: code, layer_range: [0, 2]}]
            base_model: ja
            parameters: {t: [0.1, 0.9]}
        merge_method: slerp
        base_model: base
        dtype: float32
        """,
    "nuslerp, whole": _models("nuslerp", "math", "ja", base=None, **_WEIGHTS),
    "nuslerp, rows": _models("nuslerp", "math", "ja", base=None, common="{nuslerp_flatten: false}", **_WEIGHTS),
    "nuslerp, columns": _models(
        "nuslerp", "math", "ja", base=None, common="{nuslerp_flatten: false, nuslerp_row_wise: true}", **_WEIGHTS
    ),
    "nuslerp of task vectors, whole": _models("nuslerp", "math", "ja", **_WEIGHTS),
    "nuslerp of task vectors, rows": _models("nuslerp", "math", "ja", common="{nuslerp_flatten: false}", **_WEIGHTS),
    "nuslerp of task vectors, columns": _models(
        "nuslerp", "math", "ja", common="{nuslerp_flatten: false, nuslerp_row_wise: true}", **_WEIGHTS
    ),
    "multislerp": _models("multislerp", *_THREE, base=None, **_WEIGHTS),
    "multislerp, sum": _models("multislerp", *_THREE, base=None, common="{normalize_weights: false}", **_WEIGHTS),
    "multislerp of task vectors": _models("multislerp", *_THREE, **_WEIGHTS),
    "karcher": _models("karcher", *_THREE, base=None),
    "karcher, base among the models": _models("karcher", "math", "ja", common="{max_iter: 30}"),
    "task_arithmetic": _models("task_arithmetic", *_THREE, common="{lambda: 0.8}", **_WEIGHTS),
    "task_arithmetic, mean": _models(
        "task_arithmetic", "base", *_THREE, common="{normalize: true, lambda: 0.6}", **_WEIGHTS
    ),
    "task_arithmetic, negative": _models("task_arithmetic", "math", "ja", math="{weight: 1.1}", ja="{weight: -0.4}"),
    "ties": _models("ties", *_THREE, **_SPARSE),
    "ties, sum": _models("ties", *_THREE, common="{normalize: false, lambda: 1.3, int8_mask: true}", **_SPARSE),
    "ties, rescaled": _models("ties", *_THREE, common="{rescale: true}", **_SPARSE),
    "ties, gradients": _models(
        "ties",
        "math",
        "ja",
        math="{density: [1, 0.7, 0.1], weight: 1.0}",
        ja="{density: 0.5, weight: [0, 0.3, 0.7, 1]}",
    ),
    "breadcrumbs": _models("breadcrumbs", *_THREE, common="{gamma: 0.05}", **_SPARSE),
    "breadcrumbs, rescaled": _models("breadcrumbs", *_THREE, common="{rescale: true, density: 0.9}", **_WEIGHTS),
    "breadcrumbs_ties": _models("breadcrumbs_ties", *_THREE, common="{gamma: 0.1, normalize: true}", **_SPARSE),
    "dare_linear": _models("dare_linear", *_THREE, **_SPARSE),
    "dare_ties": _models("dare_ties", *_THREE, common="{lambda: 0.9}", **_SPARSE),
    "dare_ties, not rescaled": _models("dare_ties", *_THREE, common="{rescale: false, normalize: true}", **_SPARSE),
    "della": _models("della", "math", "ja", common="{density: 0.6, epsilon: 0.2}", **_WEIGHTS),
    "della_linear": _models("della_linear", "math", "ja", common="{density: 0.4, epsilon: 0.1}", **_WEIGHTS),
    "sce": _models("sce", *_THREE, common="{select_topk: 0.4}"),
    "sce, all": _models("sce", *_THREE),
    "model_stock": _models("model_stock", *_THREE),
    "model_stock, filter-wise": _models("model_stock", *_THREE, common="{filter_wise: true}"),
    "ram": _models("ram", *_THREE, common="{epsilon: 0.02}"),
    "ramplus_tl": _models("ramplus_tl", *_THREE, common="{epsilon: 0.05, r: 0.3}"),
    "nearswap": _models("nearswap", "math", common="{t: 0.02}"),
    "passthrough": """
        slices:
          - sources: [{model: math, layer_range: [0, 2]}]
          - sources: [{model: ja, layer_range: [1, 3]}]
        merge_method: passthrough
        dtype: float32
        """,
    "passthrough, scales": """
        slices:
          - sources: [{model: math, layer_range: [0, 2]}]
          - sources:
              - model: math
                layer_range: [1, 2]
                parameters: {scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0}, {value: 1}]}
          - sources: [{model: ja, layer_range: [1, 3], parameters: {scale: [{filter: q_proj, value: [0.5, 0.9]}]}}]
        merge_method: passthrough
        dtype: float32
        """,
    "passthrough, all of one": _models("passthrough", "math", base=None, common="{scale: 0.9}"),
    "slices of ties": """
        slices:
          - sources:
              - {model: base, layer_range: [0, 1]}
              - {model: math, layer_range: [1, 2]}
              - {model: ja, layer_range: [2, 3]}
            parameters: {density: 0.4}
          - sources:
              - {model: base, layer_range: [1, 3]}
              - model: code
                layer_range: [0, 2]
                parameters: {weight: [{filter: mlp, value: [0.2, 0.9]}, {value: 0.6}]}
        merge_method: ties
        base_model: base
        parameters: {density: 0.7, weight: 0.5}
        dtype: float32
        """,
    "slices of linear": """
        slices:
          - sources: [{model: math, layer_range: [0, 2], parameters: {weight: 0.2}}, {model: ja, layer_range: [1, 3]}]
          - sources: [{model: ja, layer_range: [0, 1]}]
        merge_method: linear
        parameters: {weight: 0.8}
        dtype: float32
        """,
    "modules": """
        modules:
          default:
            slices:
              - sources: [{model: base, layer_range: [0, 3]}, {model: math, layer_range: [0, 3]}]
                parameters: {weight: [{filter: norm, value: 1}, {filter: k_proj, value: [0.3, 0.4]}]}
            parameters: {weight: 0.45}
        merge_method: task_arithmetic
        base_model: base
        parameters: {weight: 0.9, lambda: 1.1}
        dtype: float32
        """,
}
RANDOM = ("dare", "della")
"""How the names of cases with random masks begin."""


def chances(name: str, alias: str, start: int, stop: int) -> Tensor:
    """Return the uniform numbers of a source's tensor that the stored results were drawn with.

    They are none of evomerge's own: the stored results hold whatever generator it has.
    """
    key = zlib.crc32(f"{name}|{alias}".encode())
    return torch.special.ndtr(torch.from_numpy(noise(key, start, stop)))


def sizes(*, hidden: int, layers: int = 3) -> dict[str, Any]:
    """Return a model's `config.json`."""
    return tiny_llama_config(layers=layers, hidden=hidden, vocab=2 * hidden)


def model_tensors(config: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of a base, three models tuned from it, and one very near to it."""
    shapes = {name: tensor.shape for name, tensor in tiny_llama_tensors(config).items()}
    base = {name: _drawn(0, name, index, shape) for index, (name, shape) in enumerate(shapes.items())}
    found = {"base": base}
    for seed, (alias, size) in enumerate((("math", 0.5), ("ja", 0.6), ("code", 0.4), ("near", 0.02)), start=1):
        found[alias] = {
            name: base[name] + size * (_drawn(seed, name, index, shape) - (1.0 if "norm" in name else 0.0))
            for index, (name, shape) in enumerate(shapes.items())
        }
    return found


def _drawn(seed: int, name: str, index: int, shape: torch.Size) -> Tensor:
    start = 1_000_000 * index
    values = torch.from_numpy(noise(seed, start, start + shape.numel())).view(shape)
    return (1.0 + 0.1 * values if "norm" in name else 0.2 * values).float()


def write_models(folder: Path, *, hidden: int, layers: int = 3) -> Path:
    """Write the models, each in a folder of its name, and return the folder."""
    config = sizes(hidden=hidden, layers=layers)
    for name, tensors in model_tensors(config).items():
        write_checkpoint(folder / name, config, tensors)
    return folder
