"""Calibration texts: read from files, and encoded as a model reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from evomerge.checkpoints import ModelSource
from evomerge.errors import ConfigError, SourceError

_LONGEST = 1024
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True)
class Calibration:
    """Texts as tokens."""

    examples: tuple[tuple[int, ...], ...]
    """Token ids of each text, at least 2."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all."""
        return sum(len(tokens) for tokens in self.examples)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of all token ids, in order."""
        return hashlib.sha256(json.dumps(self.examples, separators=(",", ":")).encode()).hexdigest()


def read_texts(path: Path) -> list[str]:
    """Read calibration texts, one a line.

    Args:
        path: `*.jsonl`, each line an object with `text`, or with `prompt` and `answer`, which are joined; any other
            file is plain text. Empty lines are left out.

    Raises:
        ConfigError: when it cannot be read, holds no text, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); give a file of texts") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is not text in UTF-8; give a file of texts") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{path}: it holds no text; give one text a line")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_text(line, f"{path}:{number}") for number, line in numbered]


def _text(line: str, where: str) -> str:
    try:
        data: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON ({error})") from None
    if isinstance(data, Mapping):
        for keys in (("text",), ("prompt", "answer")):
            if all(isinstance(data.get(key), str) for key in keys):
                return "".join(data[key] for key in keys)
    raise ConfigError(f"{where}: expected an object with `text`, or with `prompt` and `answer`")


def encode(texts: Iterable[str], source: ModelSource, *, examples: int, max_length: int | None = None) -> Calibration:
    """Encode the first texts with a model's own tokenizer and its special tokens; longer ones are cut.

    Args:
        texts: what to encode.
        source: the model.
        examples: how many of them at most, >= 1.
        max_length: tokens of each, >= 2; None: 1024, or the model's context where that is shorter.

    Raises:
        SourceError: when the model has no tokenizer that transformers can read.
        ConfigError: when no text has two tokens.
    """
    from transformers import AutoTokenizer

    longest = max_length if max_length is not None else min(_LONGEST, _context(source.config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{source.folder}: its tokenizer cannot be read ({reason}); restore its files") from None
    taken = list(islice(texts, examples))
    encoded = tokenizer(taken, truncation=True, max_length=longest)["input_ids"] if taken else []
    kept = tuple(tuple(tokens) for tokens in encoded if len(tokens) > 1)
    if not kept:
        raise ConfigError("no calibration text has two tokens, so that nothing can be predicted; give longer texts")
    return Calibration(kept)


def _context(config: Mapping[str, Any]) -> int:
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
    return _LONGEST
