"""Figures of a run, under the names that Optuna's users know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from evomerge.recipe import Blend, Recipe, SourceInfo, expand
from evomerge.run.view import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, MUTED, ACCENT, WARM = "#1b2733", "#9aa5b1", "#0b7285", "#d9480f"
MODULES: tuple[Literal["attention", "mlp", "other"], ...] = ("attention", "mlp", "other")


def plot_pareto_front(run: Run) -> Figure:
    """Draw every feasible candidate of the search split and the front: a scatter, or a matrix of them from 3 on.

    One objective has no front; the figure then shows that objective by candidate.
    """
    import plotly.graph_objects as go

    archive, names = run.archive(), run.state.objectives
    front = set(archive.front())
    entries = [entry for entry in archive.entries if entry.feasible]
    groups = (
        ("dominated", [entry for entry in entries if entry.id not in front], MUTED, 5),
        ("front", [entry for entry in entries if entry.id in front], ACCENT, 9),
    )
    figure = go.Figure()
    for label, members, color, size in groups:
        marker = {"color": color, "size": size, "line": {"width": 0.5, "color": "white"}}
        texts = [f"candidate {entry.id}" for entry in members]
        columns = [[entry.objectives[index] for entry in members] for index in range(len(names))]
        if len(names) > 2:
            dimensions = [{"label": name, "values": column} for name, column in zip(names, columns, strict=True)]
            figure.add_trace(
                go.Splom(
                    dimensions=dimensions, name=label, text=texts, marker=marker, diagonal_visible=False, showupperhalf=False
                )
            )
            continue
        x = columns[0] if len(names) == 2 else [entry.id for entry in members]
        figure.add_trace(go.Scatter(x=x, y=columns[-1], mode="markers", name=label, text=texts, marker=marker))
    if len(names) == 2:
        _add_references(figure, run)
        figure.update_layout(xaxis_title=names[0], yaxis_title=names[1])
    elif len(names) == 1:
        figure.update_layout(xaxis_title="candidate", yaxis_title=names[0])
    height = 480 if len(names) <= 2 else 220 + 160 * len(names)
    return _styled(figure, "Pareto front, search split", height=height)


def _add_references(figure: Figure, run: Run) -> None:
    import plotly.graph_objects as go

    names = run.state.objectives
    rows = [
        (row["name"], [row["objectives"]["search"][name]["mean"] for name in names])
        for row in run.references()
        if "search" in row["objectives"]
    ]
    figure.add_trace(
        go.Scatter(
            x=[values[0] for _, values in rows],
            y=[values[1] for _, values in rows],
            mode="markers+text",
            name="references",
            text=[name for name, _ in rows],
            textposition="top center",
            marker={"color": WARM, "size": 9, "symbol": "diamond"},
        )
    )


def plot_optimization_history(run: Run) -> Figure:
    """Draw each candidate's scalarised objective and the best so far, with the references as lines."""
    import plotly.graph_objects as go

    history = run.history()
    values = [run.value(int(number), "search") for number in history.candidate]
    figure = go.Figure()
    order = list(range(1, len(values) + 1))
    figure.add_trace(
        go.Scatter(x=order, y=values, mode="markers", name="candidate", marker={"color": MUTED, "size": 5})
    )
    figure.add_trace(
        go.Scatter(x=order, y=history.best.tolist(), mode="lines", name="best so far", line={"color": ACCENT, "shape": "hv"})
    )
    for name in run.state.references:
        value = run.value(name, "search")
        if value is not None and not name.startswith("coefficient:"):
            figure.add_hline(y=value, line={"color": WARM, "dash": "dot", "width": 1}, annotation_text=name)
    figure.update_layout(xaxis_title="evaluation", yaxis_title="scalarised objective")
    return _styled(figure, "Optimization history")


def plot_objective_history(run: Run) -> Figure:
    """Draw the best value of each objective so far."""
    import plotly.graph_objects as go

    history = run.history()
    figure = go.Figure()
    order = list(range(1, len(history.candidate) + 1))
    for index, name in enumerate(run.state.objectives):
        figure.add_trace(
            go.Scatter(x=order, y=history.best_per_objective[:, index].tolist(), mode="lines", name=name, line_shape="hv")
        )
    figure.update_layout(xaxis_title="evaluation", yaxis_title="best so far")
    return _styled(figure, "Best of each objective")


def plot_hypervolume_history(run: Run) -> Figure:
    """Draw the hypervolume of the front so far."""
    import plotly.graph_objects as go

    history = run.history()
    figure = go.Figure(
        go.Scatter(
            x=list(range(1, len(history.candidate) + 1)),
            y=history.hypervolume.tolist(),
            mode="lines",
            line={"color": ACCENT, "shape": "hv"},
        )
    )
    figure.update_layout(xaxis_title="evaluation", yaxis_title="hypervolume")
    return _styled(figure, "Hypervolume history")


def plot_coefficient_heatmap(recipe: Recipe, infos: Mapping[str, SourceInfo], title: str) -> Figure:
    """Draw the weight of each source in each layer and module group of a recipe.

    Rows are sources (times module groups, where those differ), columns the embeddings, the layers in order, the head.
    Methods without weights (slerp) show their share of the other source, `t`.
    """
    import plotly.graph_objects as go

    layers = {alias: info.num_layers for alias, info in infos.items()}
    expanded = expand(recipe, layers)
    split = any(layer.blends[module] != layer.blends["attention"] for layer in expanded.layers for module in MODULES)
    modules = MODULES if split else MODULES[:1]
    inner_blends = [layer.blends[module] for layer in expanded.layers for module in MODULES]
    blends = [expanded.embeddings, *inner_blends, expanded.head]
    aliases = [alias for alias in recipe.sources if any(alias in blend.sources for blend in blends)]
    rows, labels = [], []
    for alias in aliases:
        for module in modules:
            inner = [_share(layer.blends[module], alias) for layer in expanded.layers]
            rows.append([_share(expanded.embeddings, alias), *inner, _share(expanded.head, alias)])
            labels.append(f"{alias} {module}" if split else alias)
    columns = ["embeddings", *(f"layer {index}" for index in range(len(expanded.layers))), "head"]
    figure = go.Figure(
        go.Heatmap(z=rows, x=columns, y=labels, colorscale="RdBu", zmid=0, colorbar={"title": "weight"}, xgap=1, ygap=1)
    )
    figure.update_yaxes(autorange="reversed")
    return _styled(figure, title, height=160 + 34 * max(3, len(labels)))


def _share(blend: Blend, alias: str) -> float | None:
    """Return a source's weight in a blend; None where it takes no part."""
    if alias not in blend.sources:
        return None
    value = blend.params.get("weight", blend.params.get("t"))
    if isinstance(value, tuple):
        value = value[blend.sources.index(alias)]
    return float(value) if isinstance(value, (int, float)) else None


def _styled(figure: Figure, title: str, height: int = 420) -> Figure:
    figure.update_layout(
        title=title,
        height=height,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        margin={"l": 60, "r": 30, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.18},
    )
    return figure
