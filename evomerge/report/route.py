"""The route of a recipe through the layers of its sources, and the routes of a whole run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.recipe import ExpandedLayer, Recipe, SourceInfo, expand
from evomerge.report.labels import number, plain
from evomerge.report.style import ACCENT, DARK, MUTED, styled
from evomerge.run.replay import source_infos
from evomerge.run.view import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MAX_COLUMNS = 80
"""Columns of the population's heatmap; with more candidates, each column is the mean of some."""
_MAX_TICKS = 24
"""Lanes up to which each has its layer's number beside it."""
_GAP = 1
"""Empty lanes between two sources."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """A lane for each layer of each source: the first source below, and its first layer lowest."""

    depths: Mapping[str, int]
    """Alias -> number of layers."""

    def at(self, alias: str, layer: int) -> int:
        """Return the lane of a layer, from 0."""
        start = 0
        for other, depth in self.depths.items():
            if other == alias:
                break
            start += depth + _GAP
        return start + layer

    @property
    def count(self) -> int:
        """Number of lanes, with the empty ones between sources."""
        return sum(self.depths.values()) + _GAP * (len(self.depths) - 1)

    def ticks(self) -> list[tuple[int, str]]:
        """Return which lanes are named, and how: each source by its alias, and layers by their numbers."""
        step = math.ceil(self.count / _MAX_TICKS)
        found: list[tuple[int, str]] = []
        for alias, depth in self.depths.items():
            name = plain(alias if len(alias) <= 20 else alias[:19] + "…")
            found += [
                (self.at(alias, layer), f"{name} {layer}" if layer == 0 else str(layer))
                for layer in range(0, depth, step)
            ]
        return found


def with_nested(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> dict[str, SourceInfo]:
    """Return what is known of every source of a recipe, recipes among its sources too.

    Args:
        recipe: the recipe.
        infos: alias -> what is known of it, for the sources of the search.
    """
    found = {}
    for alias, source in recipe.sources.items():
        if isinstance(source.model, Recipe):
            inner = with_nested(source.model, infos)
            depth = len(expand(source.model, {name: info.num_layers for name, info in inner.items()}).layers)
            found[alias] = SourceInfo("recipe", depth)
        else:
            found[alias] = infos[alias]
    return found


def layers_of(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> tuple[ExpandedLayer, ...]:
    """Return the output layers of a recipe, in order."""
    known = with_nested(recipe, infos)
    return expand(recipe, {alias: info.num_layers for alias, info in known.items()}).layers


def is_route(recipe: Recipe, infos: Mapping[str, SourceInfo]) -> bool:
    """Tell whether a recipe does anything but blend its sources layer by layer, one to one."""
    if recipe.layers is None:
        return False
    layers, known = layers_of(recipe, infos), with_nested(recipe, infos)
    in_place = all(taken == index for index, layer in enumerate(layers) for taken in layer.take.values())
    whole = all(known[alias].num_layers == len(layers) for layer in layers for alias in layer.take)
    return not (in_place and whole and all(layer.scale == 1 for layer in layers))


def plot_route(recipe: Recipe, infos: Mapping[str, SourceInfo], title: str = "Route") -> Figure:
    """Draw the path of the hidden stream over the layers of the sources, hop by hop.

    A point's colour is the factor on the stream that enters the layer. Where a hop blends several layers, the path
    goes through the first one, and the others stand above or below it on a thin line.

    Args:
        recipe: any recipe.
        infos: alias -> what is known of it, for the sources of the search.
        title: of the figure.

    Raises:
        RecipeError: when the recipe does not fit the sources.
    """
    import plotly.graph_objects as go

    layers, known = layers_of(recipe, infos), with_nested(recipe, infos)
    used = {alias for layer in layers for alias in layer.take}
    lanes = Lanes({alias: known[alias].num_layers for alias in _in_order(used, infos)})
    takes = [[lanes.at(*item) for item in layer.take.items()] for layer in layers]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=list(range(len(layers))), y=[lane for lane, *_ in takes], mode="lines", name="path",
            line={"color": MUTED, "width": 2}, hoverinfo="skip",
        )
    )  # fmt: skip
    blended = [(hop, lane) for hop, all_of in enumerate(takes) if len(all_of) > 1 for lane in [*all_of, None]]
    figure.add_trace(
        go.Scatter(
            x=[hop for hop, _ in blended], y=[lane for _, lane in blended], mode="lines", name="blend",
            line={"color": DARK, "width": 1, "dash": "dot"}, hoverinfo="skip",
        )
    )  # fmt: skip
    figure.add_trace(_points(layers, takes))
    _band(figure, lanes)
    figure.update_xaxes(title_text="hop", range=[-0.7, len(layers) - 0.3], zeroline=False)
    if len(layers) <= _MAX_TICKS:
        figure.update_xaxes(dtick=1, tick0=0)
    return styled(figure, title, height=_height(lanes)).update_layout(showlegend=False)


def _points(layers: Sequence[ExpandedLayer], takes: Sequence[Sequence[int]]) -> object:
    """Return a point for each layer that is taken, coloured by its hop's scale."""
    import plotly.graph_objects as go

    rows = [
        (hop, lane, layer.scale, f"hop {hop}: layer {taken} of {plain(alias)}<br>scale {number(layer.scale)}")
        for hop, (layer, all_of) in enumerate(zip(layers, takes, strict=True))
        for lane, (alias, taken) in zip(all_of, layer.take.items(), strict=True)
    ]
    scales = [scale for _, _, scale, _ in rows]
    reach = max((abs(scale - 1) for scale in scales), default=0.0)
    marker: dict[str, object] = {"size": 13, "line": {"color": DARK, "width": 1}, "color": ACCENT}
    if reach:
        # White is a factor of 1, and both ends are as far from it: the colours can be read without the bar.
        bar = {"title": {"text": "scale", "side": "top"}, "thickness": 14}
        marker |= {"color": scales, "colorscale": "RdBu", "cmin": 1 - reach, "cmax": 1 + reach, "colorbar": bar}
    marker["symbol"] = ["diamond" if scale < 0 else "circle" for scale in scales]
    return go.Scatter(
        x=[hop for hop, *_ in rows], y=[lane for _, lane, *_ in rows], text=[text for *_, text in rows],
        mode="markers", name="hops", marker=marker, hoverinfo="text",
    )  # fmt: skip


def plot_route_population(run: Run) -> Figure:
    """Draw how often each layer of each source is run, candidate by candidate in the order in which they were asked.

    Where there are more than some tens of candidates, a column is the mean of several that follow each other.

    Raises:
        StateError: before the run started.
    """
    import plotly.graph_objects as go

    infos = {} if run.state.started is None else source_infos(run.state.started)
    depths: dict[str, int] = {}
    counts: dict[int, Counter[tuple[str, int]]] = {}
    for candidate in sorted(run.state.asked):
        recipe = run.recipe(candidate)
        known = with_nested(recipe, infos)
        taken = [item for layer in layers_of(recipe, infos) for item in layer.take.items()]
        counts[candidate] = Counter(taken)
        depths |= {alias: known[alias].num_layers for alias, _ in taken}
    lanes = Lanes({alias: depths[alias] for alias in _in_order(depths, infos)})
    groups = _groups(list(counts))
    rows = [(alias, layer) for alias, depth in lanes.depths.items() for layer in range(depth)]
    shares = [_shares(item, groups, counts) for item in rows]
    told = [_told(item, groups, line) for item, line in zip(rows, shares, strict=True)]
    places = [lanes.at(*item) for item in rows]
    empty: list[float | None] = [None] * len(groups)
    figure = go.Figure(
        go.Heatmap(
            x=[group[0] for group in groups],
            y=list(range(lanes.count)),
            z=[shares[places.index(lane)] if lane in places else empty for lane in range(lanes.count)],
            text=[told[places.index(lane)] if lane in places else [""] * len(groups) for lane in range(lanes.count)],
            colorscale="Blues", zmin=0.0, hoverinfo="text",
            colorbar={"title": {"text": "times run", "side": "top"}, "thickness": 14},
        )
    )  # fmt: skip
    _band(figure, lanes)
    figure.update_xaxes(title_text="candidate", showgrid=False, zeroline=False)
    return styled(figure, "Layers that the candidates run", height=_height(lanes))


def _in_order(aliases: Iterable[str], infos: Mapping[str, SourceInfo]) -> list[str]:
    """Return sources in the order of the search; those that candidates bring with them come last, by name."""
    order = list(infos)
    return sorted(aliases, key=lambda alias: (order.index(alias) if alias in infos else len(order), alias))


def _groups(candidates: Sequence[int]) -> list[Sequence[int]]:
    """Return the candidates of each column."""
    step = math.ceil(len(candidates) / _MAX_COLUMNS) or 1
    return [candidates[start : start + step] for start in range(0, len(candidates), step)]


def _shares(
    item: tuple[str, int], groups: Sequence[Sequence[int]], counts: Mapping[int, Counter[tuple[str, int]]]
) -> list[float | None]:
    return [sum(counts[candidate][item] for candidate in group) / len(group) for group in groups]


def _told(item: tuple[str, int], groups: Sequence[Sequence[int]], shares: Sequence[float | None]) -> list[str]:
    alias, layer = item
    return [
        f"{_span(group)}<br>layer {layer} of {plain(alias)}<br>run {number(share or 0.0)} times"
        for group, share in zip(groups, shares, strict=True)
    ]


def _span(group: Sequence[int]) -> str:
    return f"candidate {group[0]}" if len(group) == 1 else f"candidates {group[0]} to {group[-1]}"


def _band(figure: Figure, lanes: Lanes) -> None:
    """Name the lanes and separate the sources."""
    ticks = lanes.ticks()
    figure.update_yaxes(
        tickvals=[lane for lane, _ in ticks], ticktext=[text for _, text in ticks], range=[-0.7, lanes.count - 0.3],
        automargin=True, zeroline=False, showgrid=False, ticklabelstandoff=6,
    )  # fmt: skip
    for alias in list(lanes.depths)[1:]:
        figure.add_hline(y=lanes.at(alias, 0) - (1 + _GAP) / 2, line={"color": MUTED, "width": 1, "dash": "dot"})


def _height(lanes: Lanes) -> int:
    return 150 + min(26 * lanes.count, 560)
