"""What a recipe's keys must say together, beyond the type of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from evomerge.documents import Key, did_you_mean
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.resolution import (
    CHROMOSOMES,
    blends_in,
    full_take,
    layer_blends,
    layer_rules,
    part_blend,
    part_rules,
    segment_blends,
    written_segments,
)

if TYPE_CHECKING:
    from evomerge.recipe.blends import SegmentConfig
    from evomerge.recipe.schema import Recipe


def check_recipe(recipe: Recipe) -> None:
    """Check aliases, layers, segments and every blend of a recipe.

    Raises:
        RecipeError: with the key path of the first fault.
    """
    _check_aliases(recipe)
    if recipe.lines is not None and recipe.base is None:
        raise RecipePathError(("lines",), f"needs a base; name it, for instance `base: {next(iter(recipe.sources))}`")
    if recipe.segments is not None:
        _check_segments(recipe)
        return
    _check_part(recipe, "embeddings")
    for index, layer in enumerate(recipe.layers or ()):
        for alias, depth in layer.take.items():
            path: Key = ("layers", index, "take", alias)
            _check_alias(recipe, path, alias)
            if depth < 0:
                raise RecipePathError(path, f"layers are counted from 0, got {depth}")
        if layer.scale == 0:
            raise RecipePathError(("layers", index, "scale"), "must not be 0, which would erase the stream")
        rules = layer_rules(recipe, index, layer)
        take = full_take(recipe, index, [*layer_blends(recipe, index, layer).values(), *blends_in(rules)])
        if recipe.lines is not None and recipe.base not in take:
            text = "`lines` needs to know from which layer of the base this one sets off; take one of the base too"
            raise RecipePathError(("layers", index, "take"), text)
    if recipe.layers is None:
        layer_blends(recipe, None, None)
        layer_rules(recipe, None, None)
    _check_part(recipe, "head")


def _check_part(recipe: Recipe, part: Literal["embeddings", "head"]) -> None:
    config = recipe.embeddings if part == "embeddings" else recipe.head
    for index, alias in enumerate((config.take if config else None) or ()):
        _check_alias(recipe, (part, "take", index), alias)
    part_blend(recipe, part)
    part_rules(recipe, part)


def _check_alias(recipe: Recipe, path: Key, alias: str) -> None:
    if alias not in recipe.sources:
        raise RecipePathError(path, f"{alias!r} is not a source of this recipe{did_you_mean(alias, recipe.sources)}")


def _check_aliases(recipe: Recipe) -> None:
    if recipe.base is not None:
        _check_alias(recipe, ("base",), recipe.base)
    tokenizer = recipe.tokenizer
    if tokenizer is not None and tokenizer.from_ is not None:
        _check_alias(recipe, ("tokenizer", "from"), tokenizer.from_)
    if tokenizer is not None:
        for index, alias in enumerate(tokenizer.union or ()):
            _check_alias(recipe, ("tokenizer", "union", index), alias)
        for token, rule in tokenizer.tokens.items():
            if rule.from_ is not None:
                _check_alias(recipe, ("tokenizer", "tokens", token, "from"), rule.from_)


def _check_segments(recipe: Recipe) -> None:
    for key in ("layers", "modules", "embeddings", "head", "tensors", "lines"):
        if getattr(recipe, key):
            raise RecipePathError((key,), "cannot stand beside `segments`, which cover the whole model")
    if isinstance(recipe.segments, Mapping):
        for name in recipe.segments:
            if name not in CHROMOSOMES:
                text = f"{name!r} is not a chromosome{did_you_mean(name, CHROMOSOMES)}"
                raise RecipePathError(("segments", name), text)
        if "rest" in recipe.segments and len(recipe.segments) == len(CHROMOSOMES):
            raise RecipePathError(
                ("segments", "rest"), "every module group is named, so that nothing is left; leave it out"
            )
    for path, segments in written_segments(recipe).values():
        _check_ends(path, segments)
    segment_blends(recipe)


def _check_ends(place: Key, segments: Sequence[SegmentConfig]) -> None:
    before = 0
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        path: Key = (*place, index, "until")
        if last != (segment.until is None):
            raise RecipePathError(path, "every segment but the last must say where it ends, and the last must not")
        if segment.until is not None:
            if segment.until <= before:
                raise RecipePathError(path, f"must lie beyond the end of the segment before it, {before}")
            before = segment.until
