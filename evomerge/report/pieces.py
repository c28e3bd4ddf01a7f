"""The weights of an individual's sources along the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from evomerge.report.labels import plain
from evomerge.report.style import styled
from evomerge.spaces import Pieces, PiecewiseSpace

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#c2255c", "#e8890c", "#1864ab", "#495057")


def plot_pieces(space: PiecewiseSpace, individual: Pieces, title: str) -> Figure:
    """Draw each source's weight by the place in the model's flat index, in millions of weights.

    Chromosomes stand side by side, in the order of the search file, between dotted lines.
    """
    import plotly.graph_objects as go

    grams = space.grams
    ends = grams.weights_before(individual.ends) / 1e6
    places = np.concatenate([[0.0], ends])
    figure = go.Figure()
    for row, alias in enumerate(grams.aliases):
        weights = individual.weights[:, row]
        figure.add_trace(
            go.Scatter(
                x=places.tolist(),
                y=np.append(weights, weights[-1]).tolist(),
                mode="lines",
                name=plain(alias),
                line={"shape": "hv", "width": 2, "color": _COLOURS[row % len(_COLOURS)]},
                hovertemplate=f"{plain(alias)} %{{y:.3f}}<br>at %{{x:.3f}} million<extra></extra>",
            )
        )
    sizes = np.cumsum([part.size for part in grams.chromosomes]) / 1e6
    for part, end in zip(grams.chromosomes, sizes.tolist(), strict=True):
        if len(sizes) > 1:
            figure.add_vline(x=end, line={"dash": "dot", "width": 1})
            figure.add_annotation(
                x=end - part.size / 2e6, y=1.0, yref="paper", yanchor="bottom", text=part.name, showarrow=False
            )
    figure.update_xaxes(title_text="weights, millions", range=[0, float(sizes[-1])])
    figure.update_yaxes(title_text="weight of the source")
    return styled(figure, title, height=340)
