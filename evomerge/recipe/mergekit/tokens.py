"""mergekit's tokenizer settings as native ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from evomerge.documents import Key, did_you_mean
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.aliases import Aliases
from evomerge.recipe.mergekit.document import Config, ModelRef, TokenRule


def tokenizer_of(config: Config, aliases: Aliases) -> dict[str, Any] | None:
    """Return the `tokenizer` of the native recipe as plain data; None: nothing is said.

    Raises:
        RecipeError: with the key path of what is not understood.
    """
    if config.tokenizer is None:
        if config.tokenizer_source is None:
            return None
        return source_of(config.tokenizer_source, aliases, ("tokenizer_source",))
    found = source_of(config.tokenizer.source, aliases, ("tokenizer", "source"))
    rules = {
        token: _rule(rule, aliases, ("tokenizer", "tokens", token))
        for token, rule in (config.tokenizer.tokens or {}).items()
    }
    if rules:
        found["tokens"] = rules
    if config.tokenizer.pad_to_multiple_of is not None:
        found["pad_to_multiple_of"] = config.tokenizer.pad_to_multiple_of
    return found


def source_of(source: str | ModelRef, aliases: Aliases, path: Key) -> dict[str, Any]:
    """Return where the tokenizer comes from: `union`, `base`, or a model that is merged.

    Raises:
        RecipeError: for another model, or the base where there is none; `path` is where it stands.
    """
    every = sorted(aliases.sources, key=lambda alias: alias != aliases.base)  # mergekit keeps the base's ids
    missing = {"missing": "base"} if aliases.base is not None else {}
    if source == "union":
        return {"union": every, **missing} if len(every) > 1 else {"from": every[0]}
    if isinstance(source, ModelRef):
        return {"from": aliases.known(source, path), **missing}
    if aliases.base is None:
        raise RecipePathError(path, "the tokenizer is to be the base's, and no `base_model` is given")
    return {"from": aliases.base, **missing}


def _rule(rule: TokenRule, aliases: Aliases, path: Key) -> dict[str, Any]:
    found: dict[str, Any] = {"everywhere": True} if rule.force else {}
    source = rule.source
    path = (*path, "source")
    if isinstance(source, Mapping) and "kind" in source:
        return found | _of_kind(source, aliases, path)
    if source is not None:
        found["from"] = aliases.known(_model(source, path), path)
    return found


def _of_kind(source: Mapping[str, Any], aliases: Aliases, path: Key) -> dict[str, Any]:
    kind = source["kind"]
    allowed = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}
    if kind not in allowed:
        raise RecipePathError((*path, "kind"), f"unknown kind {kind!r}{did_you_mean(str(kind), allowed)}")
    for key in source:
        if key not in allowed[kind]:
            raise RecipePathError((*path, key), f"unknown key {key!r}{did_you_mean(str(key), allowed[kind])}")
    if kind == "zero":
        return {"zero": True}
    token = source.get("token", source.get("token_id"))
    if token is None or ("token" in source and "token_id" in source):
        raise RecipePathError(path, "give one of `token` and `token_id`")
    return {"from": aliases.known(_model(source.get("model"), path), (*path, "model")), "token": token}


def _model(value: Any, path: Key) -> ModelRef:
    try:
        return ModelRef.model_validate(value)
    except ValidationError:
        raise RecipePathError(path, f"expected a model, got {value!r:.80}") from None
