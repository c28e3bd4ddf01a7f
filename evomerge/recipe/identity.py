"""The canonical form of a recipe, and the SHA-256 of it that is the recipe's identity.

Two recipes that mean the same merge have the same canonical form: aliases are replaced by content hashes,
defaults and layers are spelled out, sources are sorted, those of weight 0 are dropped (by convention, a source of
weight 0 takes no part, whatever the method), and the seed counts only where a method draws random numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge import operators
from evomerge.operators.metadata import Scalar
from evomerge.recipe.blends import Blend, copy_of
from evomerge.recipe.expansion import ExpandedRecipe, expand
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.schema import Recipe

_VERSION = 1
"""Counts changes of the canonical form: identities of different versions never meet."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What the canonical form needs to know of a source."""

    content_hash: str
    """Of a checkpoint the hash of its content, of a nested recipe `recipe:` and its identity."""
    num_layers: int


def canonical(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> dict[str, Any]:
    """Return the canonical form as plain JSON data, free of aliases.

    Args:
        recipe: the recipe.
        infos: alias -> what is known of it, for every source.

    Raises:
        RecipeError: when a source is not known, or the recipe does not fit the sources' depths.
    """
    for alias in recipe.sources:
        if alias not in infos:
            raise RecipePathError(("sources", alias), "nothing is known of the content of this source")
    expanded = expand(recipe, {alias: infos[alias].num_layers for alias in recipe.sources})
    form: dict[str, Any] = {
        "version": _VERSION,
        "dtype": expanded.dtype,
        "tokenizer": _tokenizer(recipe, infos),
    }
    blends: list[dict[str, Any]] = []
    if expanded.segments:
        form["depth"] = len(expanded.layers)
        form["segments"] = _segments(expanded, infos)
        blends += [segment["blend"] for segment in form["segments"]]
    else:
        form["embeddings"] = _blend(expanded.embeddings, infos, None)
        form["head"] = _blend(expanded.head, infos, None)
        form["layers"] = [
            {"scale": layer.scale}
            | {module: _blend(blend, infos, layer.take) for module, blend in layer.blends.items()}
            for layer in expanded.layers
        ]
        blends += [form["embeddings"], form["head"]]
        blends += [layer[module] for layer in form["layers"] for module in layer if module != "scale"]
    if any(operators.get(blend["method"]).random for blend in blends):
        form["seed"] = expanded.seed
    return form


def identity(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> str:
    """Return the SHA-256 (hex) of the canonical form: equal exactly for recipes that mean the same merge.

    Raises:
        RecipeError: as `canonical` does.
    """
    text = json.dumps(canonical(recipe, infos), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> Any:
    config = recipe.tokenizer
    if config is None:
        return infos[recipe.base].content_hash if recipe.base is not None else None
    if config.from_ is not None:
        return infos[config.from_].content_hash
    return {"union": [infos[alias].content_hash for alias in config.union or ()], "missing": config.missing}


def _segments(expanded: ExpandedRecipe, infos: Mapping[str, SourceInfo]) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    for segment in expanded.segments:
        blend = _blend(segment.blend, infos, None)
        if segments and segments[-1]["blend"] == blend:
            segments.pop()
        segments.append({"until": segment.until, "blend": blend})
    return segments


def _blend(blend: Blend, infos: Mapping[str, SourceInfo], take: Mapping[str, int] | None) -> dict[str, Any]:
    blend = _simplified(blend)

    def content(alias: str) -> list[str | int]:
        return [infos[alias].content_hash] if take is None else [infos[alias].content_hash, take[alias]]

    shared = {name: value for name, value in blend.params.items() if not isinstance(value, tuple)}
    each = {name: value for name, value in blend.params.items() if isinstance(value, tuple)}
    sources = [
        {"content": content(alias), "params": {name: _plain(values[index]) for name, values in each.items()}}
        for index, alias in enumerate(blend.sources)
    ]
    return {
        "method": blend.method,
        "base": content(blend.base) if blend.base is not None else None,
        "params": {name: _plain(value) for name, value in shared.items()},
        "sources": sorted(sources, key=lambda source: json.dumps(source, sort_keys=True)),
    }


def _simplified(blend: Blend) -> Blend:
    """Drop the sources of weight 0; where that leaves a base alone, the blend is a copy of it."""
    weights = blend.params.get("weight")
    if not isinstance(weights, tuple) or all(weight != 0 for weight in weights):
        return blend
    kept = [index for index, weight in enumerate(weights) if weight != 0]
    if not kept and blend.base is not None:
        return copy_of(blend.base)
    params = {
        name: tuple(value[index] for index in kept) if isinstance(value, tuple) else value
        for name, value in blend.params.items()
    }
    return Blend(blend.method, tuple(blend.sources[index] for index in kept), blend.base, params)


def _plain(value: Scalar) -> Scalar:
    return value + 0.0 if isinstance(value, float) else value  # the sum turns -0.0 into 0.0
