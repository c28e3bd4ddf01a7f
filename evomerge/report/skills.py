"""Pictures of skills: which member can do what, and how much all of them can do over time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from evomerge.report.style import ACCENT, WARM, styled
from evomerge.run.skill_map import SkillMap
from evomerge.search.skills import shares

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_MAX_COLUMNS = 1500
"""More samples than a screen has columns are shown as means of neighbours."""


def plot_skill_map(skills: SkillMap) -> Figure:
    """Draw each member's share of every sample: one row a member, samples of one cluster side by side.

    A dark cell is a sample that few others solve; white: the member does not solve it.
    """
    import plotly.graph_objects as go

    order = np.lexsort((skills.owner, skills.cluster))
    share = shares(skills.scores)[:, order]
    cluster = skills.cluster[order]
    edges = np.linspace(0, len(order), min(len(order), _MAX_COLUMNS) + 1).astype(int)
    cells = np.stack([share[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)], axis=1)
    starts = np.flatnonzero(np.diff(cluster)) + 1
    places = np.searchsorted(edges, starts) - 0.5
    figure = go.Figure(
        go.Heatmap(
            z=np.round(cells, 3).tolist(),
            colorscale="Blues",
            zmin=0.0,
            zmax=1.0,
            colorbar={"title": {"text": "share", "side": "top"}, "thickness": 14},
            hovertemplate="member %{y}<br>share %{z:.2f}<extra></extra>",
        )
    )
    for place in places.tolist():
        figure.add_vline(x=place, line={"color": WARM, "width": 1})
    bounds = [-0.5, *places.tolist(), cells.shape[1] - 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(bounds)]
    figure.update_xaxes(
        tickvals=middles, ticktext=[str(number) for number in np.unique(cluster)], title_text="cluster of samples"
    )
    rows = list(range(len(skills.members)))
    figure.update_yaxes(
        tickvals=rows, ticktext=[str(member) for member in skills.members], autorange="reversed", title_text="member"
    )
    figure.update_xaxes(showgrid=False, zeroline=False).update_yaxes(showgrid=False, zeroline=False)
    return styled(figure, "Skill map, search split", height=150 + 20 * max(4, len(skills.members)))


def plot_diversity_history(skills: SkillMap) -> Figure:
    """Draw coverage (what any member can do) and entropy (how much they differ) of the archive by evaluation."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for column, name, colour in ((1, "coverage", ACCENT), (2, "entropy, bits", WARM)):
        figure.add_trace(
            go.Scatter(
                x=skills.history[:, 0].tolist(),
                y=np.round(skills.history[:, column], 4).tolist(),
                mode="lines",
                name=name,
                line={"color": colour, "width": 2},
                hovertemplate=f"{name} %{{y:.3f}}<br>evaluation %{{x}}<extra></extra>",
            )
        )
    figure.update_xaxes(title_text="evaluation")
    figure.update_yaxes(range=[0, 1.02])
    return styled(figure, "Coverage and entropy of the archive", height=320)
