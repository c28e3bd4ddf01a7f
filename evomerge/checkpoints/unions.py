"""The tokenizer of a merged model: one source's as it is, or one to which the tokens of others are added.

A union keeps the first source's tokenizer: its ids, its rules for cutting text (merges, normaliser, template). The
others' tokens come behind, ordinary ones as entries of the model's vocabulary and added ones with their own flags. So
text is cut as the first source cuts it, but where the kind of its model finds new entries by itself: whole words
(WordLevel), longest pieces (WordPiece), scores (Unigram). A BPE model finds characters that it did not know, and no
more, as no merge leads to the others (with `ignore_merges`, whole words).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.checkpoints.assets import copy_assets
from evomerge.checkpoints.files import read_json
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.errors import NotBuiltError, SourceError

_SLOW_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)
"""What repeats a vocabulary in other words; beside one that has grown, these would contradict it."""
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary and the files that belong to it."""

    tokens: Mapping[str, int]
    """Token -> id; ids may leave gaps."""
    folder: Path
    """Of the source whose ids, chat template and generation settings it has."""
    document: Mapping[str, Any] | None = None
    """`tokenizer.json`, where it is not the folder's own."""

    @property
    def num_ids(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.values(), default=-1) + 1

    def write(self, target: Path, config: Mapping[str, Any]) -> None:
        """Write the files that go beside weights: `config.json`, tokenizer, template, generation settings.

        Raises:
            OSError: when a file cannot be written.
        """
        copy_assets(target, source=self.folder, config=config)
        if self.document is None:
            return
        for name in _SLOW_FILES:
            (target / name).unlink(missing_ok=True)
        _dump(target / "tokenizer.json", self.document)
        settings = target / "tokenizer_config.json"
        data: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if settings.is_file():
            data = read_json(settings)
        if "added_tokens_decoder" in data:
            data["added_tokens_decoder"] = {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in self.document["added_tokens"]
            }
        _dump(settings, data)


@dataclass(slots=True)
class _Additions:
    """Tokens to be added, in order, with the ids that they get."""

    first_id: int
    ordinary: dict[str, float | None] = field(default_factory=dict)
    """Token -> its score, where its own model has scores."""
    added: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Token -> its entry among the added tokens."""
    ids: dict[str, int] = field(default_factory=dict)

    def take(self, token: str, entry: Mapping[str, Any] | None, score: float | None = None) -> None:
        self.ids[token] = self.first_id + len(self.ids)
        if entry is None:
            self.ordinary[token] = score
        else:
            self.added[token] = entry


def united(first: Path, others: Iterable[tuple[Path, int]], new: Iterable[str] = ()) -> Tokenizer:
    """Return a tokenizer with the tokens of others, and with new ones.

    Args:
        first: folder of the one that is kept.
        others: folders of the others, each with the number of rows that its model has: tokens beyond have none.
        new: further tokens, which are not special; those that are there already stay as they are.

    Raises:
        SourceError: when a `tokenizer.json` cannot be read, or what comes out is no tokenizer.
        NotBuiltError: for a Unigram model that cannot take the tokens.
    """
    tokens = read_vocabulary(first) or {}
    additions = _Additions(max(tokens.values(), default=-1) + 1)
    for folder, num_rows in others:
        document = read_json(folder / "tokenizer.json")
        entries = {str(entry["content"]): entry for entry in document.get("added_tokens") or []}
        scores = _scores(document)
        theirs = read_vocabulary(folder) or {}
        for token, index in sorted(theirs.items(), key=lambda item: item[1]):
            if index < num_rows and token not in tokens and token not in additions.ids:
                additions.take(token, entries.get(token), scores.get(token))
    for token in new:
        if token not in tokens and token not in additions.ids:
            additions.take(token, _FLAGS)
    if not additions.ids:
        return Tokenizer(tokens, first)
    tokens = tokens | additions.ids
    document = _extended(first, read_json(first / "tokenizer.json"), additions)
    _check(first, document, tokens)
    return Tokenizer(tokens, first, document)


def _extended(folder: Path, document: Mapping[str, Any], additions: _Additions) -> dict[str, Any]:
    added = [*(document.get("added_tokens") or [])]
    added += [
        {**_FLAGS, **entry, "id": additions.ids[token], "content": token} for token, entry in additions.added.items()
    ]
    model, ids = document["model"], {str(entry["content"]): int(entry["id"]) for entry in added}
    # An added token that the model does not know gets the next free id when the file is read, whatever it says.
    if isinstance(model["vocab"], Mapping):
        vocabulary: Any = {**model["vocab"], **ids, **{token: additions.ids[token] for token in additions.ordinary}}
    else:
        vocabulary = _extended_list(folder, model["vocab"], ids, additions)
    return {**document, "added_tokens": added, "model": {**model, "vocab": vocabulary}}


def _extended_list(
    folder: Path, vocabulary: list[Any], added: Mapping[str, int], additions: _Additions
) -> list[list[str | float]]:
    """Return the pieces of a Unigram model, whose ids are positions."""
    by_id = {index: (token, 0.0) for token, index in added.items()}
    for token, score in additions.ordinary.items():
        if score is None:
            raise NotBuiltError(
                f"tokenizer.union: the tokenizer of {folder} has a score for each token, and {token!r} comes from one "
                f"that has none; put that one first, or write `tokenizer: {{from: ALIAS}}`"
            )
        by_id[additions.ids[token]] = token, score
    pieces: list[list[str | float]] = [list(piece) for piece in vocabulary]
    for index in range(len(pieces), additions.first_id + len(additions.ids)):
        if index not in by_id:
            raise NotBuiltError(
                f"tokenizer.union: the tokenizer of {folder} leaves the id {index} out, where no token can follow in a "
                f"Unigram model; put another source first, or write `tokenizer: {{from: ALIAS}}`"
            )
        pieces.append(list(by_id[index]))
    return pieces


def _scores(document: Mapping[str, Any]) -> dict[str, float]:
    vocabulary = document["model"]["vocab"]
    return {} if isinstance(vocabulary, Mapping) else {str(token): float(score) for token, score in vocabulary}


def _check(folder: Path, document: Mapping[str, Any], tokens: Mapping[str, int]) -> None:
    """Have the library read the tokenizer, which must give the tokens the ids that rows are laid out for."""
    import tokenizers

    try:
        found = tokenizers.Tokenizer.from_str(json.dumps(document)).get_vocab(with_added_tokens=True)
    except Exception as error:  # what the library raises is plain `Exception`
        raise SourceError(f"{folder / 'tokenizer.json'}: tokens cannot be added to it ({error})") from error
    differing = sorted(token for token, index in tokens.items() if found.get(token) != index)
    if differing:
        token = differing[0]
        raise SourceError(
            f"{folder / 'tokenizer.json'}: the token {token!r} has the id {tokens[token]} there, but the tokenizers "
            f"library gives it {found.get(token)}; save the tokenizer anew with `save_pretrained`"
        )


def _dump(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
