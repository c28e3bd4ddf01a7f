"""LiNeS as dimensions: its two numbers, which hold for the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.recipe import Recipe
from evomerge.spaces.config import LinesRanges
from evomerge.spaces.types import Dimension, Value

_KEYS = ("alpha", "beta")


def lines_dimensions(config: LinesRanges | None) -> tuple[Dimension, ...]:
    """Return `lines/alpha` and `lines/beta`, as far as they are searched; a search starts in the middle."""
    found = []
    for key in _KEYS:
        ends = getattr(config, key, None)
        if isinstance(ends, tuple):
            low, high = ends
            default = 0.5 * (low + high)
            found.append(Dimension(name=f"lines/{key}", kind="float", low=low, high=high, default=default))
    return tuple(found)


def lines_section(config: LinesRanges | None, genes: Mapping[str, Value]) -> dict[str, Any]:
    """Return what a recipe says of LiNeS, from the values of the dimensions by name."""
    if config is None:
        return {}
    return {"lines": {key: genes.get(f"lines/{key}", getattr(config, key)) for key in _KEYS}}


def lines_genes(recipe: Recipe) -> dict[str, Value]:
    """Return the values of the dimensions by name, as far as a recipe has them."""
    return {} if recipe.lines is None else {f"lines/{key}": getattr(recipe.lines, key) for key in _KEYS}
