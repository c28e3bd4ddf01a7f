"""LoRA adapters in PEFT's format: what they change, read from `adapter_config.json` and `adapter_model.safetensors`.

Hu et al. 2022, LoRA, arXiv:2106.09685: W' = W + s · B A with A of shape (rank, inputs), B of shape (outputs, rank)
and s = α / rank, or α / √rank (Kalajdzievski 2023, arXiv:2312.03732, `use_rslora`). Modules that were trained as a
whole (`modules_to_save`, `bias`) are stored beside the factors and replace the model's own tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.digests import file_digests
from evomerge.checkpoints.files import WeightFile, read_json
from evomerge.errors import SourceError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))$")
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA, which also rescales the norms of weights",
    "lora_bias": "biases on its factors",
    "target_parameters": "LoRA on bare parameters (such as fused experts)",
    "trainable_token_indices": "single trained rows of the embedding",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA, which acts on some tokens only",
    "arrow_config": "a router between several LoRA",
    "monteclora_config": "random factors (MonteCLoRA)",
    "megatron_config": "Megatron layers",
}
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Values of `init_lora_weights` with which PEFT changes the model's own weights when it loads the adapter."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one module, as they are stored."""

    first: str
    """Key of A: (rank, inputs); of an embedding (rank, vocabulary)."""
    second: str
    """Key of B: (outputs, rank); of an embedding (hidden, rank)."""
    rank: int
    scale: float
    inputs: int
    outputs: int
    is_embedding: bool


class Adapter:
    """A LoRA adapter in a folder, mapped into memory."""

    def __init__(self, folder: Path, file: WeightFile | None = None) -> None:
        """Read the settings and the header of the weights; no weight is read yet.

        Args:
            folder: as PEFT writes it.
            file: its weights, where they are not in the folder.

        Raises:
            SourceError: a missing, pickled or broken file, factors that do not fit each other, or a kind of adapter
                that is more than a low-rank update.
        """
        self.folder = folder
        self.settings: Mapping[str, Any] = _read_settings(folder, needs_weights=file is None)
        self._file = WeightFile(folder / WEIGHTS_NAME) if file is None else file
        self.pairs: dict[str, Pair] = {}
        """Module name (`model.layers.0.mlp.up_proj`) -> its factors."""
        self.whole: dict[str, str] = {}
        """Name of a tensor that is replaced (`lm_head.weight`) -> its key in the file."""
        factors: dict[str, dict[str, str]] = {}
        for key in sorted(self._file.infos):
            name = key.removeprefix(_PREFIX)
            if match := _FACTOR.match(name):
                which = f"linear {match['linear']}" if match["linear"] else f"embedding {match['embedding']}"
                factors.setdefault(match["module"], {})[which] = key
            elif ".lora_" in name:
                raise SourceError(
                    f"{folder}: tensor {key!r} is not part of a plain LoRA (lora_A and lora_B alone); "
                    f"merge this adapter into its model first (peft: merge_and_unload)"
                )
            else:
                self.whole[name.replace(".base_layer.", ".")] = key
        self.pairs = {module: self._pair(module, keys) for module, keys in factors.items()}
        if not self.pairs and not self.whole:
            raise SourceError(f"{folder / WEIGHTS_NAME}: this file holds no tensors; save the adapter again")

    @property
    def trained_on(self) -> str:
        """Return what the adapter calls its model, in words for errors."""
        name = self.settings.get("base_model_name_or_path")
        return f" (it names its model {name!r})" if isinstance(name, str) and name else ""

    def tensor(self, key: str) -> Tensor:
        """Return a stored tensor by its key in the file; it must not be changed."""
        return self._file.tensor(key)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor."""
        return self._file.infos[key].shape

    def dtype(self, key: str) -> torch.dtype:
        """Return the dtype of a stored tensor."""
        return self._file.infos[key].dtype

    def digests(self) -> dict[str, str]:
        """Return the BLAKE3 (hex) of every stored tensor by its key."""
        return file_digests(self._file)

    def _pair(self, module: str, keys: Mapping[str, str]) -> Pair:
        is_embedding = "embedding A" in keys or "embedding B" in keys
        kind = "embedding" if is_embedding else "linear"
        first, second = keys.get(f"{kind} A"), keys.get(f"{kind} B")
        if first is None or second is None or len(keys) != 2:
            raise SourceError(
                f"{self.folder}: module {module!r} has not exactly one factor A and one B; save the adapter again"
            )
        one, two = self.shape(first), self.shape(second)
        if len(one) != 2 or len(two) != 2 or one[0] != two[1]:
            raise SourceError(
                f"{self.folder}: the factors of {module!r} have the shapes {one} and {two}; expected (rank, inputs) "
                f"and (outputs, rank), as linear layers and embeddings have them"
            )
        rank = int(_of_module(self.settings, "rank_pattern", module, self.settings["r"]))
        if rank != one[0]:
            raise SourceError(
                f"{self.folder}: {CONFIG_NAME} gives {module!r} the rank {rank}, but its factors have the rank "
                f"{one[0]}; restore both files"
            )
        alpha = float(_of_module(self.settings, "alpha_pattern", module, self.settings["lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        return Pair(first, second, rank, scale, one[1], two[0], is_embedding)


def _of_module(settings: Mapping[str, Any], pattern: str, module: str, default: float) -> float:
    """Return a setting of a module: that of the first pattern that its name ends with, as PEFT reads them."""
    for key, value in (settings.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


def _read_settings(folder: Path, *, needs_weights: bool) -> Mapping[str, Any]:
    if not (folder / CONFIG_NAME).is_file():
        raise SourceError(f"{folder}: no {CONFIG_NAME} here; give the folder of a LoRA adapter as PEFT writes it")
    if needs_weights and not (folder / WEIGHTS_NAME).is_file():
        pickled = next((path.name for path in sorted(folder.glob("adapter_model.*"))), None)
        if pickled is not None:
            raise SourceError(
                f"{folder}: only pickled weights ({pickled}), and reading pickle can run any code, so they are "
                f"refused; convert them to {WEIGHTS_NAME} first"
            )
        raise SourceError(f"{folder}: {WEIGHTS_NAME} is missing (pickled weights are not read); save the adapter again")
    settings = read_json(folder / CONFIG_NAME)
    path = folder / CONFIG_NAME
    if settings.get("peft_type") != "LORA":
        raise SourceError(
            f"{path}: an adapter of type {settings.get('peft_type')!r}, but only LORA is a low-rank update of weights; "
            f"merge it into its model first (peft: merge_and_unload)"
        )
    _refuse_more(path, settings)
    _check_numbers(path, settings)
    return settings


def _refuse_more(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what is more than W + s · B A: a setting that is not understood would be ignored silently."""
    for key, value in settings.items():
        if value and (key in _REFUSED or (key.startswith("use_") and key != "use_rslora")):
            raise SourceError(
                f"{path}: {key} is set, that is {_REFUSED.get(key, 'more than a plain LoRA')}; "
                f"merge this adapter into its model first (peft: merge_and_unload)"
            )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_THE_BASE):
        raise SourceError(
            f"{path}: init_lora_weights is {start!r}, which changes the model's own weights too; convert the adapter "
            f"to a plain LoRA (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _check_numbers(path: Path, settings: Mapping[str, Any]) -> None:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not _is_number(alpha):
        raise SourceError(
            f"{path}: expected a rank `r` >= 1 and a number `lora_alpha`, got {rank!r} and {alpha!r}; restore the file"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(name)
        if pattern is None:
            continue
        if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
            raise SourceError(f"{path}: expected `{name}` to map module names to numbers; restore the file")
        for key in pattern:
            try:
                re.compile(key)
            except re.error:
                raise SourceError(f"{path}: {name}: {key!r} is no pattern of module names; restore the file") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
