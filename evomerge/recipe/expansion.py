"""The expanded recipe: every layer, part and parameter spelled out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evomerge.recipe.blends import Blend
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.lines import Lines, LinesConfig
from evomerge.recipe.resolution import (
    GROUPS,
    MODULES,
    Chromosome,
    ExpandedSegment,
    Module,
    Rule,
    blends_in,
    full_take,
    layer_blends,
    layer_rules,
    part_blend,
    part_rules,
    segment_blends,
)

if TYPE_CHECKING:
    from evomerge.recipe.schema import Dtype, Recipe


@dataclass(frozen=True, slots=True)
class ExpandedLayer:
    """One output layer."""

    take: Mapping[str, int]
    """Alias -> layer index, in the order of declaration; the base's is there wherever a blend needs it."""
    scale: float
    """Factor on the hidden stream that enters the layer."""
    blends: Mapping[Module, Blend]
    rules: tuple[Rule, ...] = ()
    """Exceptions for single tensors; the first that matches counts."""


@dataclass(frozen=True, slots=True)
class ExpandedRecipe:
    """A recipe in full, still in terms of aliases."""

    layers: tuple[ExpandedLayer, ...]
    """Output layers in order; with segments, their `blends` are empty (no blend holds for a whole layer)."""
    embeddings: Blend
    head: Blend
    dtype: Dtype
    seed: int
    base: str | None
    segments: Mapping[Chromosome, tuple[ExpandedSegment, ...]] = field(default_factory=dict)
    """Where there are any, they say how everything blends, and the other blends say nothing. Segments that come to one
    blend for each module group are spelled out as layers instead."""
    embedding_rules: tuple[Rule, ...] = ()
    """Exceptions for single tensors outside of the layers and the head; the first that matches counts."""
    head_rules: tuple[Rule, ...] = ()

    @property
    def has_rules(self) -> bool:
        """Whether single tensors have blends of their own."""
        return bool(self.embedding_rules or self.head_rules) or any(layer.rules for layer in self.layers)


def expand(recipe: Recipe, num_layers: Mapping[str, int]) -> ExpandedRecipe:
    """Spell a recipe out for sources of known depth.

    Args:
        recipe: the recipe.
        num_layers: alias -> number of layers, for every source.

    Raises:
        RecipeError: when a layer is taken that a source does not have, or the recipe leaves layers out and
            the sources differ in depth.
    """
    for alias in recipe.sources:
        if alias not in num_layers:
            raise RecipePathError(("sources", alias), "the number of layers of this source is not known")
    if recipe.segments is not None:
        return _expand_segments(recipe, num_layers)
    embeddings, head = part_blend(recipe, "embeddings"), part_blend(recipe, "head")
    if recipe.layers is None:
        layers = _one_to_one(recipe, num_layers, layer_blends(recipe, None, None), layer_rules(recipe, None, None))
    else:
        layers = _written(recipe, num_layers)
    expanded = ExpandedRecipe(
        layers,
        embeddings,
        head,
        recipe.dtype,
        recipe.seed,
        recipe.base,
        embedding_rules=part_rules(recipe, "embeddings"),
        head_rules=part_rules(recipe, "head"),
    )
    if recipe.lines is None or recipe.base is None or recipe.lines.is_neutral:
        return expanded
    return _with_lines(expanded, recipe.lines, recipe.base)


def _with_lines(expanded: ExpandedRecipe, config: LinesConfig, base: str) -> ExpandedRecipe:
    auto = hashlib.sha256(repr(expanded).encode()).hexdigest() if config.alpha == "auto" else ""
    alpha = 0.0 if config.alpha == "auto" else config.alpha
    last = len(expanded.layers) - 1

    def ruled(rules: tuple[Rule, ...], lines: Lines) -> tuple[Rule, ...]:
        return tuple(
            Rule(rule.patterns, {group: replace(blend, lines=lines) for group, blend in rule.blends.items()})
            for rule in rules
        )

    layers = []
    for index, layer in enumerate(expanded.layers):
        lines = Lines(base, alpha + (config.beta * index / last if last else 0.0), auto)
        blends = {module: replace(blend, lines=lines) for module, blend in layer.blends.items()}
        layers.append(replace(layer, blends=blends, rules=ruled(layer.rules, lines)))
    outside = Lines(base, alpha, auto)
    return replace(
        expanded,
        layers=tuple(layers),
        embeddings=replace(expanded.embeddings, lines=outside),
        head=replace(expanded.head, lines=outside),
        embedding_rules=ruled(expanded.embedding_rules, outside),
        head_rules=ruled(expanded.head_rules, outside),
    )


def _expand_segments(recipe: Recipe, num_layers: Mapping[str, int]) -> ExpandedRecipe:
    segments = segment_blends(recipe)
    first = {group: segments[group if group in segments else "rest"][0] for group in GROUPS}
    plain = all(len(each) == 1 and not each[0].noise for each in segments.values())
    layers = _one_to_one(recipe, num_layers, {module: first[module].blend for module in MODULES} if plain else {})
    embeddings, head = first["embeddings"].blend, first["head"].blend
    return ExpandedRecipe(layers, embeddings, head, recipe.dtype, recipe.seed, recipe.base, {} if plain else segments)


def _one_to_one(
    recipe: Recipe, num_layers: Mapping[str, int], blends: Mapping[Module, Blend], rules: tuple[Rule, ...] = ()
) -> tuple[ExpandedLayer, ...]:
    depths = {alias: num_layers[alias] for alias in recipe.sources}
    if len(set(depths.values())) > 1:
        listed = ", ".join(f"{alias} {depth}" for alias, depth in depths.items())
        text = f"the sources differ in depth ({listed}), so `layers` must say which layers are taken"
        raise RecipePathError(("layers",), text)
    depth = next(iter(depths.values()))
    return tuple(ExpandedLayer(dict.fromkeys(depths, index), 1.0, blends, rules) for index in range(depth))


def _written(recipe: Recipe, num_layers: Mapping[str, int]) -> tuple[ExpandedLayer, ...]:
    layers = []
    for index, layer in enumerate(recipe.layers or ()):
        blends = layer_blends(recipe, index, layer)
        rules = layer_rules(recipe, index, layer)
        take = full_take(recipe, index, [*blends.values(), *blends_in(rules)])
        for alias, depth in take.items():
            if not 0 <= depth < num_layers[alias]:
                text = f"{alias!r} has layers 0 to {num_layers[alias] - 1}, got {depth}"
                raise RecipePathError(("layers", index, "take", alias), text)
        layers.append(ExpandedLayer(take, layer.scale, blends, rules))
    return tuple(layers)
