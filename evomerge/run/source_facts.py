"""What can be said of a source without its weights, and where sources differ in ways that a merge survives."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints import AdaptedModel, HeaderCheckpoint, ModelSource, read_vocabulary
from evomerge.recipe import Recipe, SourceConfig
from evomerge.run.card import declared_license


def source_facts(config: SourceConfig, model: ModelSource) -> dict[str, Any]:
    """Return the facts of one source, as `check --json` prints them.

    `bytes` is the size of the weights, `download_bytes` what of it is not on this machine; `tokenizer` and
    `chat_template` are the first digits of SHA-256 digests, or None where there is none.
    """
    types: Counter[str] = Counter()
    for name in model.names():
        info = model.info(name)
        types[str(info.dtype).removeprefix("torch.")] += info.num_elements
    stored = model.base if isinstance(model, AdaptedModel) else model
    size = sum(stored.info(name).num_bytes for name in stored.names())
    vocabulary = read_vocabulary(model.folder)
    return {
        "model": config.model if isinstance(config.model, str) else "a nested recipe",
        "revision": config.revision,
        "adapter": config.adapter,
        "architecture": model.config.get("model_type"),
        "layers": model.layout.num_layers,
        "hidden_size": model.layout.hidden_size,
        "vocabulary": model.layout.vocab_size,
        "parameters": sum(types.values()),
        "dtype": types.most_common(1)[0][0],
        "bytes": size,
        "download_bytes": size if isinstance(stored, HeaderCheckpoint) and stored.remote else 0,
        "tokens": None if vocabulary is None else len(vocabulary),
        "tokenizer": None if vocabulary is None else _digest(json.dumps(vocabulary, sort_keys=True)),
        "chat_template": _chat_template(model.folder),
        "license": declared_license(model.folder) if isinstance(config.model, str) else None,
    }


def differences(facts: Mapping[str, Mapping[str, Any]], recipe: Recipe) -> list[str]:
    """Return one sentence for everything in which sources differ, or that they leave open, and a merge goes on.

    Args:
        facts: alias -> what `source_facts` says.
        recipe: whose base or first source the others are held against.
    """
    reference = recipe.base if recipe.base is not None else next(iter(facts))
    rule = recipe.tokenizer
    keeper = reference if rule is None else rule.from_ or (rule.union or (reference,))[0]
    ours = facts[reference]
    said: list[str] = []
    for alias, theirs in facts.items():
        for key, what, then in (
            ("architecture", "architecture", f"the merge has the configuration of {reference!r}"),
            ("dtype", "stored dtype", "each weight is read as it is stored"),
        ):
            if theirs[key] != ours[key]:
                said.append(
                    f"sources {reference!r} and {alias!r} differ in {what}, {ours[key]} and {theirs[key]}; {then}"
                )
        if theirs["chat_template"] != facts[keeper]["chat_template"]:
            said.append(
                f"sources {keeper!r} and {alias!r} have different chat templates"
                f"{'' if theirs['chat_template'] else f' ({alias!r} none)'}; the merge keeps that of {keeper!r}"
            )
        if theirs["license"] is None:
            said.append(f"source {alias!r} declares no licence; look whether you may merge and share it")
        elif ours["license"] not in (None, theirs["license"]):
            said.append(
                f"sources {reference!r} and {alias!r} are licensed differently, {ours['license']} and "
                f"{theirs['license']}; the merge is bound by both"
            )
    return said


def _chat_template(folder: Path) -> str | None:
    text = _read(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if text is None and (found := _read(folder / name)) is not None:
            try:
                value = json.loads(found).get("chat_template")
            except (ValueError, AttributeError):
                continue
            text = None if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return None if text is None else _digest(text.strip())


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
