"""The canonical form of a recipe, and the SHA-256 of it that is the recipe's identity.

Two recipes that mean the same merge have the same canonical form: aliases are replaced by content hashes,
defaults and layers are spelled out, sources are sorted, those of weight 0 are dropped (by convention, a source of
weight 0 takes no part, whatever the method), and the seed counts only where a method draws random numbers.

- *Copies* are seen through: a blend that gives one source bit by bit is a copy, whatever its method; a layer that is
  copied from a nested recipe, which copies it from a source, is that source's; a recipe that copies a nested one
  altogether is the nested one. (Rounding twice to one type is rounding once, and nothing is rounded to float32: only
  through such types is anything seen.)
- *Segments* are counted by what they mean: neighbours that blend alike are one, a list is the segments of all module
  groups, and segments that come to one blend a group are the same as layers that say so.
- *Scales* count by their products S_t = s_1·...·s_t, in float64 and in order: only these reach the weights. Nothing
  else about them folds away: a factor common to all S_t changes how the branches stand to the embeddings, and a sign
  turns the norms.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge import operators
from evomerge.operators.metadata import Scalar
from evomerge.recipe.blends import Blend
from evomerge.recipe.copies import copied, simplified
from evomerge.recipe.expansion import expand
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.resolution import GROUPS, MODULES, Group, Module, Rule
from evomerge.recipe.schema import Recipe, TokenConfig

_VERSION = 2
"""Counts changes of the canonical form: identities of different versions never meet."""

Place = tuple[Literal["embeddings", "head"]] | tuple[Literal["layer"], int, Module]
"""A part of a model whose tensors blend alike."""
_EMBEDDINGS: Place = ("embeddings",)
_HEAD: Place = ("head",)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What the canonical form needs to know of a source."""

    content_hash: str
    """Of a checkpoint the hash of its content, of a nested recipe `recipe:` and its identity; `aligned:` and a hash
    where the recipe's vocabulary moves its rows."""
    num_layers: int
    inner: Mapping[str, SourceInfo] | None = None
    """Of a nested recipe, what is known of its own sources; left out: of equal sources of the outer recipe."""
    statistics: Mapping[str, str] = field(default_factory=dict)
    """Kind -> content hash of what was measured of it; counts where a method needs it."""


def canonical(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> dict[str, Any]:
    """Return the canonical form as plain JSON data, free of aliases.

    Args:
        recipe: the recipe.
        infos: alias -> what is known of it, for every source; a nested recipe may be missing whose own sources are
            sources of this recipe too.

    Raises:
        RecipeError: when a source is not known, or the recipe does not fit the sources' depths.
    """
    return _Model(recipe, infos).form()


def identity(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> str:
    """Return the SHA-256 (hex) of the canonical form: equal exactly for recipes that mean the same merge.

    Raises:
        RecipeError: as `canonical` does.
    """
    return _digest(canonical(recipe, infos))


class _Model:
    """A recipe over known sources: its canonical form, and what in it is a copy of what."""

    def __init__(self, recipe: Recipe, infos: Mapping[str, SourceInfo]) -> None:
        self.recipe = recipe
        self._infos = infos
        self._nested: dict[str, _Model] = {}
        for alias, config in recipe.sources.items():
            inner = self._known_inside(alias)
            if isinstance(config.model, Recipe) and inner is not None:
                self._nested[alias] = _Model(config.model, inner)
            elif alias not in infos:
                raise RecipePathError(("sources", alias), "nothing is known of the content of this source")
        self.expanded = expand(recipe, {alias: self._depth(alias) for alias in recipe.sources})
        self._products = _products([layer.scale for layer in self.expanded.layers])

    def form(self) -> dict[str, Any]:
        """Return the canonical form."""
        origin = self.whole_copy()
        if origin in self._nested and self._nested[origin].recipe.dtype in ("float32", self.recipe.dtype):
            return self._nested[origin].form() | {"dtype": self.recipe.dtype}
        form: dict[str, Any] = {
            "version": _VERSION,
            "dtype": self.recipe.dtype,
            "tokenizer": self._tokenizer(),
        }
        blends: list[dict[str, Any]] = []
        if self.expanded.segments:
            form["depth"] = len(self.expanded.layers)
            form["segments"] = self._segments()
            blends += [piece["blend"] for entry in form["segments"] for piece in entry["pieces"]]
        else:
            form["embeddings"] = self._blend(self.expanded.embeddings, _EMBEDDINGS)
            form["head"] = self._blend(self.expanded.head, _HEAD)
            form["layers"] = [self._layer(index) for index in range(len(self.expanded.layers))]
            blends += [form["embeddings"], form["head"]]
            blends += [layer[module] for layer in form["layers"] for module in MODULES]
            if self.expanded.has_rules:
                form["rules"] = self._outside_rules()
                found = [*form["rules"].values(), *(layer["rules"] for layer in form["layers"])]
                blends += [blend for rules in found for rule in rules for blend in rule["blends"].values()]
        if any(operators.get(blend["method"]).random for blend in blends):
            form["seed"] = self.expanded.seed
        return form

    # ---- sources

    def _known_inside(self, alias: str) -> Mapping[str, SourceInfo] | None:
        """Return what is known of the sources of a nested recipe; None where that is not enough, or it is none."""
        config = self.recipe.sources[alias]
        if not isinstance(config.model, Recipe) or config.adapter is not None:
            return None
        info = self._infos.get(alias)
        if info is not None and info.inner is not None:
            return info.inner
        if config.model.tokenizer is not None and not config.model.tokenizer.is_plain:
            return None
        known: dict[str, SourceInfo] = {}
        for name, source in config.model.sources.items():
            same = [outer for outer, own in self.recipe.sources.items() if own == source and outer in self._infos]
            if not same or self._infos[same[0]].content_hash.startswith("aligned:"):
                return None  # aligned to the outer recipe's vocabulary, which the inner one does not know
            known[name] = self._infos[same[0]]
        return known

    def _depth(self, alias: str) -> int:
        nested = self._nested.get(alias)
        return len(nested.expanded.layers) if nested is not None else self._infos[alias].num_layers

    def _content_hash(self, alias: str) -> str:
        """Return the content hash under which a source's weights are known to methods that draw random numbers."""
        if alias in self._infos:
            return self._infos[alias].content_hash
        return f"recipe:{_digest(self._nested[alias].form())}"

    def content(self, alias: str) -> str:
        """Return the content hash of a source; where it is nothing but a copy, of what it copies."""
        nested = self._nested.get(alias)
        origin = nested.whole_copy() if nested is not None else None
        if nested is None or origin is None or nested.recipe.dtype != "float32":
            return self._content_hash(alias)
        return nested.content(origin)

    def _tokenizer(self) -> Any:
        config = self.recipe.tokenizer
        extra: dict[str, Any] = {}
        if config is not None and config.tokens:
            extra["tokens"] = {token: self._token(rule) for token, rule in config.tokens.items()}
        if config is not None and config.pad_to_multiple_of is not None:
            extra["pad_to_multiple_of"] = config.pad_to_multiple_of
        if config is not None and (config.union is not None or config.missing != "mean"):
            extra["missing"] = config.missing
        if config is not None and config.union is not None:
            return {"union": [self.tokenizer_of(alias) for alias in config.union], **extra}
        source = self.tokenizer_source()
        found = self.tokenizer_of(source) if source is not None else None
        return {"from": found, **extra} if extra else found

    def _token(self, rule: TokenConfig) -> dict[str, Any]:
        origin = None if rule.from_ is None else self.content(rule.from_)
        return {"from": origin, "token": rule.token, "zero": rule.zero, "everywhere": rule.everywhere}

    def tokenizer_source(self) -> str | None:
        """Return the alias whose tokenizer this model has as it is, or None."""
        config = self.recipe.tokenizer
        return self.recipe.base if config is None else config.from_

    def tokenizer_of(self, alias: str) -> str:
        """Return the content hash of the source whose tokenizer a source has."""
        nested = self._nested.get(alias)
        origin = nested.tokenizer_source() if nested is not None else None
        if nested is None or origin is None:
            return self._content_hash(alias)
        return nested.tokenizer_of(origin)

    # ---- copies

    def copied_at(self, place: Place) -> str | None:
        """Return the alias whose tensors stand at a place as they are, or None."""
        whole = not (self.expanded.segments or self.expanded.has_rules)
        return copied(simplified(self._blend_at(place))) if whole else None

    def _blend_at(self, place: Place) -> Blend:
        if place[0] == "layer":
            return self.expanded.layers[place[1]].blends[place[2]]
        return self.expanded.embeddings if place[0] == "embeddings" else self.expanded.head

    def taken_at(self, alias: str, place: Place) -> Place:
        """Return the place of a source that stands at a place of this model."""
        if place[0] != "layer":
            return place
        return "layer", self.expanded.layers[place[1]].take[alias], place[2]

    def is_unscaled(self, place: Place) -> bool:
        """Tell whether the scales leave the weights at a place alone (the final norm takes the last sign)."""
        if place[0] == "layer":
            return self._products is not None and self._products[place[1]] == 1.0
        return place[0] == "embeddings" or (self._products is not None and self._products[-1] > 0)

    def origin(self, alias: str, place: Place, dtype: str) -> list[str | int]:
        """Return what really stands at a place of a source, if it is rounded to a type next (float32: never)."""
        nested = self._nested.get(alias)
        if nested is not None and nested.recipe.dtype in ("float32", dtype) and nested.is_unscaled(place):
            inner = nested.copied_at(place)
            if inner is not None:
                return nested.origin(inner, nested.taken_at(inner, place), dtype)
        return [self.content(alias), *([place[1]] if place[0] == "layer" else [])]

    def whole_copy(self) -> str | None:
        """Return the alias of which this model is a copy in every part, but for its type, or None."""
        alias = self.copied_at(_EMBEDDINGS)
        layers = self.expanded.layers
        if alias is None or self.copied_at(_HEAD) != alias or len(layers) != self._depth(alias):
            return None
        for index, layer in enumerate(layers):
            places: list[Place] = [("layer", index, module) for module in MODULES]
            if layer.take.get(alias) != index or not all(map(self.is_unscaled, places)):
                return None
            if any(self.copied_at(place) != alias for place in places):
                return None
        source = self.tokenizer_source()
        config = self.recipe.tokenizer
        if config is not None and not config.is_plain:
            return None
        same = source is not None and self.tokenizer_of(source) == self.tokenizer_of(alias)
        return alias if same else None

    # ---- parts of the form

    def _layer(self, index: int) -> dict[str, Any]:
        layer = self.expanded.layers[index]
        # Products that no float64 holds make no model; such a route is told apart by its scales.
        scale = {"scale": layer.scale} if self._products is None else {"product": self._products[index]}
        form: dict[str, Any] = dict(scale)
        known: dict[int | Module, dict[str, Any]] = {}
        for module, blend in layer.blends.items():
            # Only of a nested recipe may the module groups of one layer be copies of different things.
            same = module if self._nested else id(blend)
            if same not in known:
                known[same] = self._blend(blend, ("layer", index, module))
            form[module] = known[same]
        if self.expanded.has_rules:
            places: dict[Group, Place] = {module: ("layer", index, module) for module in MODULES}
            form["rules"] = self._rules(layer.rules, places)
        return form

    def _outside_rules(self) -> dict[str, list[dict[str, Any]]]:
        expanded = self.expanded
        return {
            "embeddings": self._rules(expanded.embedding_rules, {"embeddings": _EMBEDDINGS}),
            "head": self._rules(expanded.head_rules, {"head": _HEAD}),
        }

    def _rules(self, rules: tuple[Rule, ...], places: Mapping[Group, Place]) -> list[dict[str, Any]]:
        """Return the form of exceptions for single tensors; their patterns count as written, for no name is known."""
        return [
            {
                "patterns": sorted(set(rule.patterns)),
                "blends": {group: self._blend(blend, places[group]) for group, blend in rule.blends.items()},
            }
            for rule in rules
        ]

    def _segments(self) -> list[dict[str, Any]]:
        """Return the pieces of each set of module groups; groups that are one piece and blend alike are one set."""
        named = set(self.expanded.segments)
        found: dict[str, dict[str, Any]] = {}
        for name, segments in self.expanded.segments.items():
            groups = [group for group in GROUPS if group not in named] if name == "rest" else [name]
            pieces: list[dict[str, Any]] = []
            for segment in segments:
                noise = [[seed, scale] for seed, scale in sorted(segment.noise.items())]
                piece = {"blend": self._blend(segment.blend, None), "noise": noise}
                if pieces and {**pieces[-1], "until": None} == {**piece, "until": None}:
                    pieces.pop()
                pieces.append({**piece, "until": segment.until})
            same = json.dumps(pieces, sort_keys=True) if len(pieces) == 1 else name
            entry = found.setdefault(same, {"modules": [], "pieces": pieces})
            entry["modules"] = sorted([*entry["modules"], *groups])
        return sorted(found.values(), key=lambda entry: str(entry["modules"]))

    def _blend(self, blend: Blend, place: Place | None) -> dict[str, Any]:
        """Return the form of a blend at a place; None: at a range of the flat index."""
        blend = simplified(blend)
        copy = copied(blend)
        is_random = operators.get(blend.method).random

        def content(alias: str) -> list[str | int]:
            if place is not None and alias == copy:
                # What is divided by its scale was rounded before: that must not have changed it.
                dtype = self.recipe.dtype if self.is_unscaled(place) else "float32"
                return self.origin(alias, self.taken_at(alias, place), dtype)
            name = self._content_hash(alias) if is_random else self.content(alias)
            return [name, self.expanded.layers[place[1]].take[alias]] if place and place[0] == "layer" else [name]

        shared = {name: value for name, value in blend.params.items() if not isinstance(value, tuple)}
        each = {name: value for name, value in blend.params.items() if isinstance(value, tuple)}
        sources = [
            {"content": content(alias), "params": {name: _plain(values[index]) for name, values in each.items()}}
            | self._statistics(alias, blend)
            for index, alias in enumerate(blend.sources)
        ]
        lines = blend.lines
        kept: dict[str, Any] = {}
        if lines is not None:
            kept["lines"] = {"base": content(lines.base), "factor": lines.factor + 0.0, "auto": bool(lines.auto)}
        return kept | {
            "method": blend.method,
            "base": content(blend.base) if blend.base is not None else None,
            "params": {name: _plain(value) for name, value in shared.items()},
            "sources": sorted(sources, key=lambda source: json.dumps(source, sort_keys=True)),
        }

    def _statistics(self, alias: str, blend: Blend) -> dict[str, Any]:
        """Return the content hashes of what a blend needs to know of a source; nothing where it needs nothing."""
        kinds = operators.get(blend.method).statistics(blend.params)
        known = self._infos[alias].statistics if alias in self._infos else {}
        return {"statistics": {kind: known.get(kind) for kind in kinds}} if kinds else {}


def _products(scales: list[float]) -> tuple[float, ...] | None:
    """Return S_t = s_1·...·s_t of each layer, or None where one is no number other than 0."""
    products: list[float] = []
    for scale in scales:
        products.append(scale * (products[-1] if products else 1.0))
    return tuple(products) if all(math.isfinite(product) and product != 0 for product in products) else None


def _digest(form: Mapping[str, Any]) -> str:
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Scalar) -> Scalar:
    return value + 0.0 if isinstance(value, float) else value  # the sum turns -0.0 into 0.0
