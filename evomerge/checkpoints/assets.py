"""What goes beside the weights of a written checkpoint: configuration, tokenizer, generation settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",  # its end tokens belong to the chat template
    "preprocessor_config.json",
    "processor_config.json",
)


def output_config(config: Mapping[str, Any], dtype: torch.dtype, *, tied: bool) -> dict[str, Any]:
    """Return the configuration of a checkpoint whose weights are stored as `dtype`.

    Args:
        config: the configuration of the source that the model takes after.
        dtype: how the merged weights are stored.
        tied: whether the head is the input embedding (then it is not stored).
    """
    name = str(dtype).removeprefix("torch.")
    # transformers 5 writes `dtype`; older readers know `torch_dtype` alone, and everybody still reads that.
    result = {key: _section(value, name) for key, value in config.items()}
    result.pop("_name_or_path", None)
    if not {"dtype", "torch_dtype"} & result.keys():
        result["dtype"] = name
    for key in {"dtype", "torch_dtype"} & result.keys():
        result[key] = name
    if result.get("tie_word_embeddings") is True and not tied:
        result["tie_word_embeddings"] = False
    return result


def _section(value: Any, dtype: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: dtype if key in ("dtype", "torch_dtype") else item for key, item in value.items()}


def copy_assets(target: Path, *, source: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json` and copy generation settings and tokenizer files; never code, never weights.

    Args:
        target: the folder that is being written.
        source: the folder of the model whose tokenizer, chat template and generation settings it has.
        config: what `config.json` will hold.

    Raises:
        OSError: when a file cannot be written.
    """
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    templates = source / "additional_chat_templates"
    for path in sorted(templates.glob("*.jinja")):
        (target / templates.name).mkdir(exist_ok=True)
        shutil.copyfile(path, target / templates.name / path.name)
