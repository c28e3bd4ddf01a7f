"""Figures of a run, under the names that Optuna's users know. Each is a Plotly figure that stands by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.recipe import Recipe, SourceInfo
from evomerge.report.heatmap import draw_heatmap
from evomerge.report.labels import number, plain, spread, wrapped
from evomerge.report.pareto import draw_pareto_front
from evomerge.report.pieces import plot_pieces
from evomerge.report.points import candidate_groups, compared_values, reference_points
from evomerge.report.route import is_route, plot_route, plot_route_population, with_nested
from evomerge.report.skills import plot_diversity_history, plot_skill_map
from evomerge.report.style import ACCENT, DARK, MUTED, WARM, pad, styled
from evomerge.run.view import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "is_route",
    "plot_coefficient_heatmap",
    "plot_diversity_history",
    "plot_hypervolume_history",
    "plot_objective_history",
    "plot_optimization_history",
    "plot_pareto_front",
    "plot_pieces",
    "plot_route",
    "plot_route_population",
    "plot_skill_map",
    "with_nested",
]

_HEIGHT = 400
_LABEL_PX = 16
"""Height of a line of text in a figure, pixels."""


def plot_pareto_front(run: Run) -> Figure:
    """Draw every feasible candidate of the search split, the front among them, and the references.

    Two objectives: one scatter, with the front as a staircase. Three or more: one scatter for each pair. One
    objective has no front; the figure then shows it by candidate.
    """
    figure, height = draw_pareto_front(run.state.objectives, candidate_groups(run), reference_points(run))
    return styled(figure, "Pareto front, search split", height=height)


def plot_optimization_history(run: Run) -> Figure:
    """Draw each candidate's scalarised objective and the best so far, with references as lines.

    Candidates without a value (infeasible or failed before they were measured) stand at the bottom.
    """
    import plotly.graph_objects as go

    history, entries = run.history(), run.archive().entries
    values = [run.value(entry.id, "search") for entry in entries]
    lines = compared_values(run)
    low, high = pad([value for value in [*values, *(value for _, value in lines)] if value is not None])
    floor = low + 0.02 * (high - low)
    # The line lies below the points, so that those that raised it can be seen.
    figure = go.Figure(_best_line(history.best, "best so far"))
    for name, feasible, marker in (
        ("candidate", True, {"color": MUTED, "size": 6}),
        ("infeasible", False, {"color": DARK, "size": 7, "symbol": "x"}),
    ):
        chosen = [
            (order, entry.id, floor if value is None else value, value)
            for order, (entry, value) in enumerate(zip(entries, values, strict=True), start=1)
            if entry.feasible == feasible
        ]
        figure.add_trace(
            go.Scatter(
                x=[order for order, *_ in chosen],
                y=[place for _, _, place, _ in chosen],
                text=[f"candidate {who}<br>{_value(value)}" for _, who, _, value in chosen],
                mode="markers", name=name, marker=marker, hoverinfo="text", showlegend=bool(chosen),
            )
        )  # fmt: skip
    _draw_lines(figure, lines, low, high)
    figure.update_layout(yaxis={"title": {"text": scalar_name(run)}, "range": [low, high]})
    _evaluations_axis(figure, len(entries))
    styled(figure, "Optimization history, search split", height=_HEIGHT)
    longest = max((len(name) for name, _ in lines), default=0)
    return figure.update_layout(margin={"r": 70 + 7 * min(longest, 24) if lines else 30})


def _draw_lines(figure: Figure, lines: Sequence[tuple[str, float]], low: float, high: float) -> None:
    """Draw references as dotted lines, with their names in the margin to the right, none over another."""
    gap = _LABEL_PX * (high - low) / (_HEIGHT - 110)
    places = spread([value for _, value in lines], gap)
    for (name, value), place in zip(lines, places, strict=True):
        figure.add_hline(y=value, line={"color": WARM, "dash": "dot", "width": 1})
        short = name if len(name) <= 24 else name[:23] + "…"
        figure.add_annotation(
            x=1.005, xref="paper", xanchor="left", y=place, yref="y", yanchor="middle", showarrow=False,
            text=f"{plain(short)} {number(value)}", font={"color": WARM, "size": 12},
        )  # fmt: skip


def plot_objective_history(run: Run) -> Figure:
    """Draw each objective by itself: every feasible candidate, and the best so far."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names, history, entries = run.state.objectives, run.history(), run.archive().entries
    feasible = [(order, entry) for order, entry in enumerate(entries, start=1) if entry.feasible]
    height = 120 + 150 * len(names)
    figure = make_subplots(
        rows=len(names),
        shared_xaxes=True,
        vertical_spacing=min(0.35 / len(names), 0.12),
        subplot_titles=[plain(name) if len(name) <= 100 else plain(name[:99]) + "…" for name in names],
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    for index in range(len(names)):
        cloud = go.Scatter(
            x=[order for order, _ in feasible],
            y=[entry.objectives[index] for _, entry in feasible],
            text=[f"candidate {entry.id}<br>{number(entry.objectives[index])}" for _, entry in feasible],
            mode="markers", name="candidate", marker={"color": MUTED, "size": 5}, hoverinfo="text",
            showlegend=index == 0,
        )  # fmt: skip
        line = _best_line(history.best_per_objective[:, index], "best so far", showlegend=index == 0)
        figure.add_trace(line, row=index + 1, col=1)
        figure.add_trace(cloud, row=index + 1, col=1)
    _evaluations_axis(figure, len(entries))
    figure.update_xaxes(title_text=None)
    figure.update_xaxes(title_text="evaluation", row=len(names), col=1)
    # The first panel's name needs a line of its own below the legend.
    return styled(figure, "Each objective, search split", height=height).update_layout(margin={"t": 95})


def plot_hypervolume_history(run: Run) -> Figure:
    """Draw the hypervolume of the front so far, above the archive's reference point."""
    import plotly.graph_objects as go

    history = run.history()
    figure = go.Figure(_best_line(history.hypervolume, "hypervolume", showlegend=False))
    figure.update_layout(yaxis={"title": {"text": "hypervolume"}, "rangemode": "tozero"})
    _evaluations_axis(figure, len(history.candidate))
    return styled(figure, "Hypervolume history", height=320)


def plot_coefficient_heatmap(recipe: Recipe, infos: Mapping[str, SourceInfo], title: str) -> Figure:
    """Draw the weight of each source in each layer and module group of a recipe.

    Rows are sources (times module groups, where those differ), columns the embeddings, the layers in order, the head.
    Methods without weights (slerp) show their share of the other source, `t`. Grey: the source takes no part.
    """
    figure, height = draw_heatmap(recipe, with_nested(recipe, infos))
    return styled(figure, title, height=height)


def scalar_name(run: Run) -> str:
    """Return what the scalarised objective is: the objective itself, the mean, the minimum, or a weighted sum."""
    names, rule = run.state.objectives, run.config.search.scalarize
    if not isinstance(rule, str):
        return "weighted sum of the objectives" if len(names) > 1 else "weighted objective"
    if len(names) == 1:
        return wrapped(names[0])
    return "mean of the objectives" if rule == "mean" else "lowest objective"


def _value(value: float | None) -> str:
    return "not measured" if value is None else number(value)


def _best_line(values: Any, name: str, *, showlegend: bool = True) -> Any:
    """Return a line of steps; evaluations before the first value are left out."""
    import plotly.graph_objects as go

    known = [(order, float(value)) for order, value in enumerate(values, start=1) if not np.isnan(value)]
    return go.Scatter(
        x=[order for order, _ in known],
        y=[value for _, value in known],
        # A single evaluation is no line yet.
        mode="lines+markers" if len(known) == 1 else "lines",
        name=name,
        line={"color": ACCENT, "shape": "hv", "width": 2},
        text=[f"{name}: {number(value)}<br>evaluation {order}" for order, value in known],
        hoverinfo="text",
        showlegend=showlegend and bool(known),
    )


def _evaluations_axis(figure: Figure, count: int) -> None:
    """Give every history the same axis, so that they can be read one under the other."""
    margin = max(0.5, 0.01 * count)
    figure.update_xaxes(title_text="evaluation", range=[1 - margin, count + margin], rangemode="normal")
    if count <= 12:
        figure.update_xaxes(dtick=1, tick0=1)
