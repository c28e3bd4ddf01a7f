"""The weights of a recipe, source by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from evomerge.recipe import MODULES, Blend, ExpandedLayer, ExpandedRecipe, Recipe, SourceInfo, expand
from evomerge.report.labels import number, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MAX_NUMBERS = 18
"""Columns up to which each cell shows its number."""
_MAX_TICKS = 24
"""Columns up to which each has its name below."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A table of weights; None where a source takes no part."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """One row a source (and module group), one column the embeddings, each layer, and the head."""
    names: tuple[str, ...]
    """The parameters that the values are: `weight`, `t`."""


def weights_of(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> Weights:
    """Return the weight of each source in each part of a recipe.

    Raises:
        RecipeError: when the recipe does not fit the sources.
    """
    expanded = expand(recipe, {alias: info.num_layers for alias, info in infos.items()})
    # Recipes in segments have no blend of a whole layer.
    layers = [layer for layer in expanded.layers if layer.blends]
    split = any(layer.blends[module] != layer.blends["attention"] for layer in layers for module in MODULES)
    modules = MODULES if split else MODULES[:1]
    blends = _all_blends(expanded, layers)
    rows, values = [], []
    for alias in recipe.sources:
        if not any(alias in blend.sources for blend in blends):
            continue
        for module in modules:
            inner = [_share(layer.blends[module], alias) for layer in layers]
            values.append((_share(expanded.embeddings, alias), *inner, _share(expanded.head, alias)))
            rows.append(f"{alias} {module}" if split else alias)
    columns = ("embeddings", *(f"layer {index}" for index in range(len(layers))), "head")
    names = dict.fromkeys("weight" if "weight" in blend.params else "t" for blend in blends if _shows(blend))
    return Weights(tuple(rows), columns, tuple(values), tuple(names))


def draw_heatmap(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> tuple[Figure, int]:
    """Draw the weights and return the figure with its height in pixels."""
    import plotly.graph_objects as go

    weights = weights_of(recipe, infos)
    columns = weights.columns
    known = [value for value in chain.from_iterable(weights.values) if value is not None]
    top = max((abs(value) for value in known), default=0.0) or 1.0
    signed = any(value < 0 for value in known)
    figure = go.Figure(
        go.Heatmap(
            z=weights.values,
            colorscale="RdBu" if signed else "Blues",
            zmin=-top if signed else 0.0,
            zmax=top,
            colorbar={"title": {"text": plain(" or ".join(weights.names)), "side": "top"}, "thickness": 14},
            text=[
                [f"{plain(row)}<br>{column}<br>{_told(value)}" for column, value in zip(columns, line, strict=True)]
                for row, line in zip(weights.rows, weights.values, strict=True)
            ],
            hoverinfo="text",
            texttemplate="%{z:.2f}" if len(columns) <= _MAX_NUMBERS else None,
            xgap=2,
            ygap=2,
        )
    )
    _name_axes(figure, weights)
    return figure, 130 + 38 * max(2, len(weights.rows))


def _name_axes(figure: Figure, weights: Weights) -> None:
    last = len(weights.columns) - 1
    shown = [0, *range(1, last, math.ceil((last - 1) / _MAX_TICKS) or 1), last]
    ticks = [weights.columns[place] for place in shown]
    if last > 9:
        ticks = [tick.removeprefix("layer ") for tick in ticks]
        figure.update_xaxes(title_text="layer")
    labels = [plain(row if len(row) <= 32 else row[:31] + "…") for row in weights.rows]
    figure.update_xaxes(tickvals=shown, ticktext=ticks)
    # Places are numbers: two long names that are cut to the same text stay two rows.
    figure.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed", automargin=True, ticklabelstandoff=6
    )
    figure.update_xaxes(showgrid=False, zeroline=False).update_yaxes(showgrid=False, zeroline=False)
    figure.update_layout(plot_bgcolor="#e4e7eb")


def _all_blends(expanded: ExpandedRecipe, layers: list[ExpandedLayer]) -> list[Blend]:
    inner = (layer.blends[module] for layer in layers for module in MODULES)
    return [expanded.embeddings, *inner, expanded.head]


def _shows(blend: Blend) -> bool:
    return "weight" in blend.params or "t" in blend.params


def _share(blend: Blend, alias: str) -> float | None:
    """Return a source's weight in a blend; None where it takes no part."""
    if alias not in blend.sources:
        return None
    value = blend.params.get("weight", blend.params.get("t"))
    if isinstance(value, tuple):
        value = value[blend.sources.index(alias)]
    return float(value) if isinstance(value, (int, float)) else None


def _told(value: float | None) -> str:
    return "takes no part" if value is None else number(value)
