"""A Pareto front that grows point by point; all objectives are maximised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Vector = NDArray[np.float64]


class Front:
    """The points to which no other is at least equal in every objective and better in one; equals are on it together.

    Adding a point costs one comparison with all of the front, and nothing with what has left it.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._points: Points = np.zeros((0, 0))

    def __len__(self) -> int:
        """How many points there are."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """Their ids, in the order of adding."""
        return tuple(self._ids)

    @property
    def points(self) -> Points:
        """Their objectives, shape (points, objectives), in the order of `ids`; not to be written to."""
        return self._points

    def covers(self, values: Sequence[float]) -> bool:
        """Tell whether a point of the front is at least equal to one in every objective."""
        return bool(len(self) and (self._points >= np.asarray(values)).all(axis=1).any())

    def add(self, id_: int, values: Sequence[float]) -> bool:
        """Put a point on the front, and what it dominates off it; return whether it belongs there."""
        point = np.asarray(values, dtype=np.float64)
        if not len(self):
            self._ids, self._points = [id_], point[None, :]
            return True
        above = np.all(self._points >= point, axis=1)
        if (self._points[above] > point).any():
            return False
        kept = np.logical_or(np.any(self._points > point, axis=1), above)
        if not kept.all():
            self._ids = [one for one, stays in zip(self._ids, kept.tolist(), strict=True) if stays]
        self._ids.append(id_)
        self._points = np.concatenate([self._points[kept], point[None, :]])
        return True


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Return the volume that points, shape (points, objectives), dominate above a reference point."""
    corner = np.asarray(reference, dtype=np.float64)
    inside = points[(points > corner).all(axis=1)] if len(points) else points
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(inside.max() - corner[0])
    import moocore

    return float(moocore.hypervolume(inside, ref=corner, maximise=True))


def gain(points: Points, newcomer: Sequence[float], reference: Sequence[float]) -> float:
    """Return by how much a newcomer raises the hypervolume of points, shape (points, objectives); at least 0.

    That is the volume of its own box, less what the points dominate of it: the hypervolume of the points cut down to
    the box, of which few are left that do not dominate each other (the exclusive contribution: While, Bradstreet and
    Barone 2012, "A Fast Way of Calculating Exact Hypervolumes").
    """
    point = np.asarray(newcomer, dtype=np.float64)
    box = point - np.asarray(reference, dtype=np.float64)
    if not (box > 0).all():
        return 0.0
    cut = np.minimum(points, point) if len(points) else points
    return max(0.0, float(box.prod()) - hypervolume(_undominated(cut), reference))


def _undominated(points: Points) -> Points:
    """Return the points that no other dominates, each once."""
    if len(points) < 2 or points.shape[1] < 2:
        return points
    import moocore

    kept: Points = points[moocore.is_nondominated(points, maximise=True)]
    return kept
