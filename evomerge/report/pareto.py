"""The scatter of objectives: one panel for two of them, one a pair for more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from evomerge.report.labels import place_labels, plain, wrapped
from evomerge.report.points import Group
from evomerge.report.style import ACCENT, MUTED, WARM, pad

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MARKERS: tuple[dict[str, Any], ...] = (
    {"color": MUTED, "size": 5},
    {"color": ACCENT, "size": 9, "line": {"width": 0.5, "color": "white"}},
    {"color": ACCENT, "size": 16, "symbol": "circle-open", "line": {"width": 2}},
    {"color": WARM, "size": 9, "symbol": "diamond"},
    {"color": WARM, "size": 5},
)


def draw_pareto_front(
    names: Sequence[str], candidates: tuple[Group, Group, Group], references: tuple[Group, Group]
) -> tuple[Figure, int]:
    """Draw the panels and return the figure with its height in pixels.

    Args:
        names: the objectives, at least one.
        candidates: dominated, front, best.
        references: single ones, and a sweep that is drawn as a path.
    """
    if len(names) == 1:
        return _by_candidate(names[0], candidates), 400
    from plotly.subplots import make_subplots

    size = len(names) - 1
    specs: list[list[dict[str, Any] | None]] = [[{}] * (row + 1) + [None] * (size - row - 1) for row in range(size)]
    spacing = 0.05 / size
    figure = make_subplots(
        rows=size,
        cols=size,
        specs=specs,
        shared_xaxes="columns",
        shared_yaxes="rows",
        horizontal_spacing=spacing,
        vertical_spacing=spacing,
    )
    for row in range(size):
        for column in range(row + 1):
            # Names belong to the first panel alone; a click on one then hides the group in all panels.
            for trace in _traces(candidates, references, (column, row + 1), legend=row == 0, stairs=size == 1):
                figure.add_trace(trace, row=row + 1, col=column + 1)
        figure.update_yaxes(title_text=wrapped(names[row + 1], 50 if size == 1 else 22), row=row + 1, col=1)
        figure.update_xaxes(title_text=wrapped(names[row], 100 if size == 1 else 22), row=size, col=row + 1)
    figure.update_yaxes(title_standoff=12)
    if size > 1:
        figure.update_xaxes(title_font_size=12).update_yaxes(title_font_size=12)
    if size == 1:
        _add_labels(figure, candidates, references)
    return figure, 520 if size == 1 else 130 + 210 * size


def _by_candidate(name: str, candidates: tuple[Group, Group, Group]) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for group, marker in zip(candidates, _MARKERS, strict=False):
        figure.add_trace(
            go.Scatter(
                x=[int(point.name.split()[-1]) for point in group.points],
                y=[point.values[0] for point in group.points],
                text=[point.text for point in group.points],
                mode="markers", name=group.name, marker=marker, hoverinfo="text", showlegend=bool(group.points),
            )
        )  # fmt: skip
    return figure.update_layout(xaxis_title="candidate", yaxis_title=wrapped(name))


def _traces(
    candidates: tuple[Group, Group, Group],
    references: tuple[Group, Group],
    axes: tuple[int, int],
    *,
    legend: bool,
    stairs: bool,
) -> list[Any]:
    import plotly.graph_objects as go

    traces = []
    for group, marker in zip((*candidates, *references), _MARKERS, strict=True):
        points = list(group.points)
        mode, line = "markers", None
        if group is references[1]:
            mode, line = "lines+markers", {"color": WARM, "width": 1, "dash": "dot"}
        elif stairs and group is candidates[1]:
            # What the front dominates lies below and left of this staircase: right of each point it falls at once.
            points.sort(key=lambda point: (point.values[0], -point.values[1]))
            mode, line = "lines+markers", {"color": ACCENT, "width": 1, "shape": "vh"}
        traces.append(
            go.Scatter(
                x=[point.values[axes[0]] for point in points],
                y=[point.values[axes[1]] for point in points],
                text=[point.text for point in points],
                mode=mode, name=group.name, marker=marker, line=line, hoverinfo="text",
                legendgroup=group.name, showlegend=legend and bool(points),
            )
        )  # fmt: skip
    return traces


def _add_labels(figure: Figure, candidates: tuple[Group, Group, Group], references: tuple[Group, Group]) -> None:
    """Write the names of the references beside their points; of the sweep, only where it begins and ends."""
    points = list(chain.from_iterable(group.points for group in (*candidates, *references)))
    if not points:
        return
    x_range, y_range = (pad([point.values[axis] for point in points]) for axis in (0, 1))
    single, sweep = references
    chosen = [*single.points, *sweep.points[:1], *sweep.points[1:][-1:]]
    named = [(point.name.removeprefix("coefficient:"), point.values[0], point.values[1]) for point in chosen]
    figure.update_layout(xaxis_range=x_range, yaxis_range=y_range)
    for label in place_labels(named, x_range, y_range):
        vertical, horizontal = label.position.split()
        figure.add_annotation(
            x=label.x, y=label.y, text=plain(label.text), showarrow=False, font={"color": WARM, "size": 12},
            xanchor={"center": "center", "right": "left", "left": "right"}[horizontal],
            yanchor={"top": "bottom", "bottom": "top", "middle": "middle"}[vertical],
            xshift={"center": 0, "right": 9, "left": -9}[horizontal],
            yshift={"top": 5, "bottom": -5, "middle": 0}[vertical],
        )  # fmt: skip
