"""Colours and layout that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, MUTED, DARK, ACCENT, WARM = "#1b2733", "#9aa5b1", "#616e7c", "#0b7285", "#d9480f"
TITLE_PX = 30
"""Height that a figure's title takes, pixels."""


def styled(figure: Figure, title: str, *, height: int) -> Figure:
    """Give a figure its title, height (pixels), fonts and margins; the legend stands above, to the left."""
    from evomerge.report.labels import plain

    figure.update_yaxes(exponentformat="e")
    return figure.update_layout(
        title={"text": plain(title), "x": 0, "xref": "paper", "xanchor": "left", "y": 0.99, "yanchor": "top"},
        height=height,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        margin={"l": 60, "r": 30, "t": 40 + TITLE_PX, "b": 50},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
    )


def pad(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds all values with a margin; 0 to 1 for none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 1e-3)
    return low - margin, high + margin
