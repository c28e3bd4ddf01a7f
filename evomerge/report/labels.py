"""Text on figures: escaping, wrapping, numbers, and where labels go so that they do not cover each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Position = Literal["top center", "bottom center", "middle right", "middle left"]

# Rough sizes as shares of a figure on a laptop: a character's width, a line's height, the gap to a marker.
_CHARACTER, _LINE, _GAP = 0.008, 0.055, 0.015
_SAME = 0.02
"""Points nearer than this share of the axis in both directions share a label."""


def plain(text: str) -> str:
    """Return text that Plotly shows as it is: Plotly reads a subset of HTML in every label."""
    return escape(text, quote=False)


def pieces(text: str) -> list[str]:
    """Return text cut where a line may end: after spaces, and after signs and dots, for names have few spaces."""
    return [piece for piece in re.split(r"(?<=\s)(?=\S)|(?<=[*/+)])(?=[^\s*/+)])|(?<=[^\W\d]\.)(?=\S)", text) if piece]


def wrapped(text: str, width: int = 26, max_lines: int = 3) -> str:
    """Return text broken into lines of at most `width` characters, what goes beyond `max_lines` as an ellipsis."""
    lines = [""]
    for word in pieces(text):
        for piece in (word[start : start + width] for start in range(0, len(word), width)):
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1].rstrip()[: width - 1] + "…"]
    return "<br>".join(plain(line.rstrip()) for line in lines)


def number(value: float) -> str:
    """Return a number with three decimals, or with four digits where those would say too little or too much."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def with_error(mean: float, stderr: float | None) -> str:
    """Return `0.731 ± 0.020`."""
    if stderr is None:
        return number(mean)
    if stderr == 0 or 1e-3 <= max(abs(mean), stderr) < 1e3:
        # As many decimals for both; a mean that rounds to zero has no sign.
        return f"{mean:z.3f} ± {stderr:.3f}"
    return f"{number(mean)} ± {number(stderr)}"


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return places near the values, in the same order, none closer to another than `gap`."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    # Labels that touch form a block that is centred on its members' own places; blocks that touch become one.
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        centre, members = values[index], [index]
        while blocks and centre - blocks[-1][0] < gap * (len(members) + len(blocks[-1][1])) / 2:
            members = [*blocks.pop()[1], *members]
            centre = sum(values[member] for member in members) / len(members)
        blocks.append((centre, members))
    places = [0.0] * len(values)
    for centre, members in blocks:
        for rank, member in enumerate(members):
            places[member] = centre + gap * (rank - (len(members) - 1) / 2)
    return places


@dataclass(frozen=True, slots=True)
class Label:
    """A label beside a point."""

    text: str
    x: float
    y: float
    position: Position


def place_labels(
    points: Iterable[tuple[str, float, float]], x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[Label]:
    """Return one label for each place with named points, each on a side where it covers no other label.

    Args:
        points: name, x and y of each point.
        x_range: what the axis shows, low and high.
        y_range: what the axis shows, low and high.
    """
    spots: list[tuple[list[str], float, float]] = []
    for name, x, y in points:
        for names, spot_x, spot_y in spots:
            if abs(x - spot_x) <= _SAME * _length(x_range) and abs(y - spot_y) <= _SAME * _length(y_range):
                names.append(name)
                break
        else:
            spots.append(([name], x, y))
    labels: list[Label] = []
    taken: list[_Box] = []
    for names, x, y in spots:
        text = ", ".join(names)
        share_x, share_y = (x - x_range[0]) / _length(x_range), (y - y_range[0]) / _length(y_range)
        boxes = {side: _box(side, share_x, share_y, len(text)) for side in _SIDES}
        free = [side for side in _SIDES if boxes[side].inside() and not any(map(boxes[side].overlaps, taken))]
        side = free[0] if free else _SIDES[0]
        taken.append(boxes[side])
        labels.append(Label(text, x, y, side))
    return labels


_SIDES: tuple[Position, ...] = ("top center", "bottom center", "middle right", "middle left")


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    low: float
    high: float

    def overlaps(self, other: _Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left or self.high <= other.low or other.high <= self.low
        return not apart

    def inside(self) -> bool:
        return self.left >= 0 and self.right <= 1 and self.low >= 0 and self.high <= 1


def _box(side: Position, x: float, y: float, characters: int) -> _Box:
    width = _CHARACTER * characters
    if side == "middle right":
        return _Box(x + _GAP, x + _GAP + width, y - _LINE / 2, y + _LINE / 2)
    if side == "middle left":
        return _Box(x - _GAP - width, x - _GAP, y - _LINE / 2, y + _LINE / 2)
    low = y + _GAP if side == "top center" else y - _GAP - _LINE
    return _Box(x - width / 2, x + width / 2, low, low + _LINE)


def _length(span: tuple[float, float]) -> float:
    return (span[1] - span[0]) or 1.0
