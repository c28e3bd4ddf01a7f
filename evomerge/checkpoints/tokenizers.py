"""Tokenizers of checkpoints, compared by vocabulary. They are read as data, without a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.files import read_json
from evomerge.errors import SourceError

_SHOWN = 3


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Return token -> id of the folder's `tokenizer.json`, added tokens included; None where there is none.

    Raises:
        SourceError: when the file is not a tokenizer's.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    data = read_json(path)
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    added = data.get("added_tokens") or []
    try:
        tokens = _tokens(vocabulary)
        tokens.update((str(token["content"]), int(token["id"])) for token in added)
    except (TypeError, KeyError, ValueError, IndexError):
        raise SourceError(f"{path}: holds no vocabulary that can be read; restore the file") from None
    return tokens


def _tokens(vocabulary: Any) -> dict[str, int]:
    if isinstance(vocabulary, Mapping):
        return {str(token): int(index) for token, index in vocabulary.items()}
    # A unigram model lists [token, score] pairs; the position is the id.
    return {str(pair[0]): index for index, pair in enumerate(vocabulary)}


def check_same_tokenizer(alias: str, folder: Path, other_alias: str, other_folder: Path) -> None:
    """Refuse two models whose tokens have different ids: their embedding rows do not mean the same.

    Models without `tokenizer.json` are not compared.

    Raises:
        SourceError: naming some of the tokens.
    """
    ours, theirs = folder / "tokenizer.json", other_folder / "tokenizer.json"
    if not (ours.exists() and theirs.exists()) or ours.read_bytes() == theirs.read_bytes():
        return
    first, second = read_vocabulary(folder) or {}, read_vocabulary(other_folder) or {}
    differing = sorted(token for token in first.keys() | second.keys() if first.get(token) != second.get(token))
    if not differing:
        return
    examples = ", ".join(
        f"{token!r} ({_id(first.get(token))} against {_id(second.get(token))})" for token in differing[:_SHOWN]
    )
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    raise SourceError(
        f"the tokenizers of {alias!r} and {other_alias!r} differ: {examples}{more}; "
        f"say what becomes of them: `tokenizer: {{from: {alias}}}` keeps the tokens of one source, "
        f"`{{union: [{alias}, {other_alias}]}}` those of both"
    )


def _id(index: int | None) -> str:
    return "absent" if index is None else str(index)
