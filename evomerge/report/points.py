"""What figures draw: the candidates of a run in groups, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evomerge.report.labels import plain, with_error
from evomerge.run.view import Run
from evomerge.search.archive import Entry


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate or a reference on the search split."""

    name: str
    values: tuple[float, ...]
    """One an objective."""
    text: str
    """What the pointer shows, escaped."""


@dataclass(frozen=True, slots=True)
class Group:
    """Points that look the same."""

    name: str
    points: tuple[Point, ...]


def candidate_groups(run: Run) -> tuple[Group, Group, Group]:
    """Return the dominated candidates, the front, and the chosen one (best, where there is one) again."""
    archive = run.archive()
    front, best = set(archive.front()), run.best()
    entries = [entry for entry in archive.entries if entry.feasible]

    def group(name: str, chosen: Iterable[Entry]) -> Group:
        return Group(name, tuple(_candidate(entry, run.state.objectives) for entry in chosen))

    return (
        group("dominated", (entry for entry in entries if entry.id not in front)),
        group("front", (entry for entry in entries if entry.id in front)),
        group(f"best on {run.selection_split}", (entry for entry in entries if entry.id == best)),
    )


def reference_points(run: Run) -> tuple[Group, Group]:
    """Return the references by themselves, and the sweep of one coefficient in the order of the sweep."""
    names = run.state.objectives
    single: list[Point] = []
    sweep: list[Point] = []
    for row in run.references():
        measured = row["objectives"].get("search")
        if measured is None:
            continue
        values = tuple(measured[name]["mean"] for name in names)
        errors = tuple(measured[name]["stderr"] for name in names)
        point = Point(row["name"], values, _text(row["name"], names, values, errors))
        (sweep if row["name"].startswith("coefficient:") else single).append(point)
    return Group("references", tuple(single)), Group("one coefficient for all", tuple(sweep))


def compared_values(run: Run) -> list[tuple[str, float]]:
    """Return the scalarised objective of the references on the search split; of the sweep, its best alone."""
    values = [(name, run.value(name, "search")) for name in run.compared()]
    return [(name, value) for name, value in values if value is not None]


def _candidate(entry: Entry, names: tuple[str, ...]) -> Point:
    errors: tuple[float | None, ...] = entry.stderrs or (None,) * len(names)
    name = f"candidate {entry.id}"
    return Point(name, entry.objectives, _text(name, names, entry.objectives, errors))


def _text(title: str, names: tuple[str, ...], values: tuple[float, ...], errors: tuple[float | None, ...]) -> str:
    lines = [
        f"{plain(name if len(name) <= 60 else name[:59] + '…')}: {with_error(value, error)}"
        for name, value, error in zip(names, values, errors, strict=True)
    ]
    return "<br>".join([plain(title), *lines])
