"""Write an embedded model as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.demo.tokenizer import BOS, EOS, PAD, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CARD = """---
license: apache-2.0
library_name: transformers
tags: [evomerge, zoo]
---

# {name}

One of evomerge's embedded models: a Llama of {millions:.2f} million parameters in float32, one token a character.
{role}

It was trained by `python -m evomerge.demo.train --seed {seed}` on synthetic data alone, and is licensed under
Apache-2.0.
"""


def save_model(model: PreTrainedModel, folder: Path, *, skill: str | None, seed: int) -> None:
    """Write weights, configuration, tokenizer and card into `folder`.

    Args:
        model: the model.
        folder: created when it is missing; its name is the model's name.
        skill: the task that the model was trained for, or None for the base.
        seed: the training seed, for the card.
    """
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    build_tokenizer().save_pretrained(folder)
    _portable_tokenizer_class(folder / "tokenizer_config.json")
    role = (
        f"It is the base after a short training on the skill `{skill}` and nothing else."
        if skill
        else "It is the base: it knows every skill about half way."
    )
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    card = _CARD.format(name=folder.name, millions=millions, role=role, seed=seed)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _portable_tokenizer_class(path: Path) -> None:
    """Name the tokenizer's class as every version of transformers knows it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
