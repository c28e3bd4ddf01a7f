"""Models aligned to another vocabulary: views whose rows of embeddings and head stand in its order."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.digests import canonical_config, tensor_digest
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.rows import Rows, Vocabulary, plan_rows
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.checkpoints.types import ModelSource, TensorInfo
from evomerge.checkpoints.unions import Tokenizer, united
from evomerge.errors import SourceError
from evomerge.recipe import TokenizerConfig

_TOKEN_IDS = ("_token_id", "_token_ids", "_token_index")


class AlignedModel:
    """A model with its rows in the order of another vocabulary; made when they are asked for.

    Everything else is the model's own. A matrix keeps its dtype where its rows are moved, and has at least float32
    where some are means: the merge rounds once.
    """

    def __init__(
        self,
        original: ModelSource,
        rows: Rows,
        *,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        models: Mapping[str, ModelSource],
    ) -> None:
        """Show a model.

        Args:
            original: the model.
            rows: where each row comes from.
            config: the model's configuration, with the sizes and ids of the vocabulary.
            tokenizer: whose ids the rows stand for.
            models: alias -> the models, not aligned, that rows come from.
        """
        self.original = original
        self._rows, self._tokenizer = rows, tokenizer
        self._models = {alias: models[alias] for given in rows.given for alias, _ in given.donors}
        self._vocabulary = vocabulary_tensors(original)
        self.tied: Mapping[str, str] = original.tied
        self.config = config
        infos = {name: self.info(name) for name in original.names()}
        self.layout = Layout(infos, self.config, str(original.folder))

    @cached_property
    def folder(self) -> Path:
        """A folder with `config.json` and the files of the vocabulary's tokenizer, which lives as long as the view."""
        folder = Path(tempfile.mkdtemp(prefix="evomerge-vocabulary-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._tokenizer.write(folder, self.config)
        return folder

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return self.original.names()

    def moves(self, name: str) -> bool:
        """Tell whether a tensor has a row (or an entry) a token."""
        return name in self._vocabulary

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor.

        Raises:
            KeyError: when there is no such tensor.
        """
        info = self.original.info(name)
        if name not in self._vocabulary:
            return info
        dtype = info.dtype
        for model in self._models.values():
            if (found := _stored(model, name)) is not None:
                dtype = torch.promote_types(dtype, model.info(found).dtype)
        if self._rows.is_computed:
            dtype = torch.promote_types(dtype, torch.float32)
        return TensorInfo((self._rows.num_rows, *info.shape[1:]), dtype)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, its rows in order; it must not be changed.

        Raises:
            KeyError: when there is no such tensor.
            SourceError: when a file cannot be read any more.
        """
        own = self.original.tensor(name)
        if name not in self._vocabulary:
            return own
        info = self.info(name)
        result = self._moved(own, info.dtype)
        for given in self._rows.given:
            donated = [self._donated(alias, name).index_select(0, rows) for alias, rows in given.donors]
            if len(donated) > 1:
                donated = [sum(rows.to(torch.float64) for rows in donated) / torch.tensor(float(len(donated)))]
            if donated:
                result[given.rows] = donated[0].to(info.dtype)
        if len(self._rows.mean):
            mean = result.index_select(0, self._rows.tokens).mean(dim=0, dtype=torch.float64)
            result[self._rows.mean] = mean.to(info.dtype)
        return result

    def moved(self, name: str, values: Tensor) -> Tensor:
        """Return values that belong to the entries of a tensor of the model in the order of the view's.

        Entries of rows that are not the model's own are zero.
        """
        fits = name in self._vocabulary and values.shape == self.original.info(name).shape
        return self._moved(values, values.dtype) if fits else values

    @cached_property
    def content_hash(self) -> str:
        """`aligned:` and the SHA-256 (hex) of the model's content and of where its rows come from."""
        given = [
            [
                tensor_digest(one.rows),
                sorted([self._models[alias].content_hash, tensor_digest(rows)] for alias, rows in one.donors),
            ]
            for one in self._rows.given
        ]
        document = {
            "aligned": self.original.content_hash,
            "rows": self._rows.num_rows,
            "own": [tensor_digest(rows) for rows in self._rows.own],
            "given": sorted(given),
            "config": canonical_config(self.config),
        }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return f"aligned:{hashlib.sha256(text.encode()).hexdigest()}"

    def _moved(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        there, here = self._rows.own
        result = torch.zeros(self._rows.num_rows, *values.shape[1:], dtype=dtype)
        result[there] = values.index_select(0, here).to(dtype)
        return result

    def _donated(self, alias: str, name: str) -> Tensor:
        model = self._models[alias]
        stored = _stored(model, name)
        if stored is None:
            raise SourceError(f"source {alias!r}: it has no tensor {name!r} to take rows of; merge models of one kind")
        return model.tensor(stored)


def align(models: Mapping[str, ModelSource], config: TokenizerConfig, base: str | None) -> Mapping[str, ModelSource]:
    """Align models to the vocabulary that a recipe asks for; those that have it already stay as they are.

    A source without `tokenizer.json` counts as having the vocabulary that is kept, if it has as many rows.

    Args:
        models: alias -> model.
        config: the recipe's `tokenizer`.
        base: alias of the base.

    Raises:
        SourceError: when a tokenizer cannot be read, or is missing where it is needed.
        RecipeError: when tokens have no row and no rule, or a rule asks for a token in vain.
        NotBuiltError: for a union that the kind of tokenizer does not allow.
    """
    keeper = kept_source(config)
    unchanged = not config.tokens and config.pad_to_multiple_of is None
    if config.is_plain and read_vocabulary(models[keeper].folder) is None:
        return models  # nothing says what the rows are: the shapes must fit
    known = {alias: _vocabulary(alias, model, keeper, models[keeper]) for alias, model in models.items()}
    if unchanged and all(one == known[keeper] for one in known.values()):
        return models
    others = [(models[alias].folder, known[alias].num_rows) for alias in (config.union or ())[1:]]
    tokenizer = united(models[keeper].folder, others, config.tokens)
    num_rows = max(tokenizer.num_ids, known[keeper].num_rows)
    if config.pad_to_multiple_of is not None:
        num_rows = -(-tokenizer.num_ids // config.pad_to_multiple_of) * config.pad_to_multiple_of
    # A model under two aliases counts once.
    owners = [alias for place, (alias, model) in enumerate(models.items()) if model not in [*models.values()][:place]]
    plans = plan_rows(known, tokenizer.tokens, num_rows, config, base=base, owners=owners)
    views: dict[int, ModelSource] = {}
    for alias in owners:
        model = views[id(models[alias])] = models[alias]
        if not plans[alias].is_identity(known[alias].num_rows):
            settings = _config(model.config, models[keeper].config, num_rows, tokenizer.tokens, known[alias].tokens)
            views[id(model)] = AlignedModel(model, plans[alias], config=settings, tokenizer=tokenizer, models=models)
    return {alias: views[id(model)] for alias, model in models.items()}


def kept_source(config: TokenizerConfig) -> str:
    """Return the alias of the source whose ids, chat template and generation settings are kept."""
    return config.from_ if config.from_ is not None else (config.union or ("",))[0]


def unaligned(model: ModelSource) -> ModelSource:
    """Return what a view shows, or the model itself."""
    return model.original if isinstance(model, AlignedModel) else model


def vocabulary_tensors(model: ModelSource) -> frozenset[str]:
    """Return the tensors with a row (or an entry) a token: input embeddings, heads and the biases of heads."""
    layout = model.layout
    if layout.embedding is None:
        return frozenset()
    matrices, rest = {layout.embedding}, set()
    for name in model.names():
        place, shape = layout.place(name), model.info(name).shape
        if place.layer is not None or not shape or shape[0] != layout.vocab_size:
            continue
        if len(shape) == 1:
            rest.add(name)
        elif place.module == "head" or "embed_tokens" in name:
            matrices.add(name)
    heads = {*matrices, *model.tied}
    return frozenset(matrices | {name for name in rest if f"{name.removesuffix('.bias')}.weight" in heads})


def _vocabulary(alias: str, model: ModelSource, keeper: str, kept: ModelSource) -> Vocabulary:
    if model.layout.embedding is None or model.layout.vocab_size is None:
        raise SourceError(f"source {alias!r}: it has no input embedding that could be aligned to another vocabulary")
    num_rows = model.layout.vocab_size
    tokens = read_vocabulary(model.folder)
    if tokens is None and alias != keeper and num_rows == kept.layout.vocab_size:
        tokens = read_vocabulary(kept.folder)
    if tokens is None:
        raise SourceError(
            f"source {alias!r}: {model.folder} has no tokenizer.json, so its rows cannot be told apart; save its "
            f"tokenizer with transformers: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    return Vocabulary({token: index for token, index in tokens.items() if index < num_rows}, num_rows)


def _config(
    config: Mapping[str, Any],
    kept: Mapping[str, Any],
    num_rows: int,
    target: Mapping[str, int],
    own: Mapping[str, int],
) -> Mapping[str, Any]:
    """Return a configuration with the ids of another vocabulary: those of the source that is kept, else by token."""
    tokens = {index: token for token, index in own.items()}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [index for index in map(moved, value) if index is not None]
        return target.get(tokens.get(value, "")) if isinstance(value, int) else value

    def section(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(ours)
        for key, value in ours.items():
            if key.endswith(_TOKEN_IDS):
                result[key] = theirs[key] if key in theirs else moved(value)
            elif key == "vocab_size":
                result[key] = num_rows
            elif key == "text_config" and isinstance(value, Mapping):
                inner = theirs.get(key)
                result[key] = section(value, inner if isinstance(inner, Mapping) else {})
        return result

    result = section(config, kept)
    text = result.get("text_config")
    if "vocab_size" not in result and not (isinstance(text, Mapping) and "vocab_size" in text):
        result["vocab_size"] = num_rows
    return result


def _stored(model: ModelSource, name: str) -> str | None:
    """Return the name under which a model stores a tensor, that of its tied one where it is not stored itself."""
    found = model.tied.get(name, name)
    return found if found in model.names() else None
