"""MAP-Elites: the best candidate of every cell of a grid over two metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from evomerge.errors import ConfigError
from evomerge.search.breeder import Breeder, BreedingOptions, Individual
from evomerge.search.options import parse_options
from evomerge.search.scalar import Scalarize, scalarize
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Space

_Range = tuple[float, float]


class MapElitesOptions(BreedingOptions):
    """Options of MAP-Elites; the grid is the paper's for the digits."""

    cells: tuple[int, int] = (10, 10)
    """Cells of the grid along each measure, at least 1; the paper's language models had 4 by 4."""
    measures: tuple[str, str] | None = None
    """Two metrics with scores per sample, whose means tell the cell. Left out: the first two objectives."""
    ranges: tuple[_Range, _Range] = Field(default=((0.0, 1.0), (0.0, 1.0)))
    """Low and high end of each measure; what lies outside counts for the outermost cell."""

    @field_validator("cells")
    @classmethod
    def _positive(cls, cells: tuple[int, int]) -> tuple[int, int]:
        if min(cells) < 1:
            raise ValueError(f"expected at least one cell along each measure, got {cells}")
        return cells

    @field_validator("ranges")
    @classmethod
    def _rising(cls, ranges: tuple[_Range, _Range]) -> tuple[_Range, _Range]:
        if any(low >= high for low, high in ranges):
            raise ValueError(f"expected low < high for each measure, got {ranges}")
        return ranges


class MapElites:
    """Illumination of a grid: children of two random elites, of which a better one takes a cell.

    Mouret and Clune, "Illuminating search spaces by mapping elites", 2015 (arXiv:1504.04909), with `ribs` keeping the
    grid, and the crossing of natural niches: the baseline of Abrantes, Lange and Tang 2025. A cell's elite is the
    feasible candidate with the highest scalarised objective, the earlier of equals. The sources are asked first; as
    long as one is open or there are fewer than two elites, children are random merges of the sources. `ask(n)` always
    gives n; the grid changes in the order in which outcomes are told.

    Args:
        space: a space that breeds.
        seed: of every random number.
        options: as `MapElitesOptions`.
        scalarize: how several objectives are seen as one number.

    Raises:
        ConfigError: for a space that does not breed, fewer than two sources, or an option that does not exist.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",
    ) -> None:
        self._options = parse_options(MapElitesOptions, options)
        self._breeder = Breeder(space, self._options, seed=seed, name="map_elites")
        self._scalarize = scalarize
        from ribs.archives import GridArchive  # takes seconds: it loads scikit-learn, and torch where that is installed

        # The archive's own seed is for its sampling, which is not used: draws belong to candidates.
        self._grid = GridArchive(
            solution_dim=(),
            dims=self._options.cells,
            ranges=self._options.ranges,
            dtype=np.float64,  # of the solution too: an id, exact far beyond any search
        )
        self._elites: dict[int, Individual] = {}
        self._cells: dict[int, int] = {}

    def ask(self, n: int) -> list[Candidate]:
        """Return `n` new candidates."""
        return [self._next() for _ in range(n)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the measures are not there, or the scalarisation does not fit; nothing has changed then.
        """
        point = self._measure(candidate.id, outcome) if outcome.state == "feasible" else None
        quality = scalarize(self._scalarize, outcome.objectives) if point is not None else math.nan
        individual = self._breeder.close(candidate)
        if point is not None:
            self._offer(candidate.id, individual, point, quality)

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Let a candidate of another searcher, whose id is negative, take its cell if it is the better one.

        Raises:
            ConfigError: as `tell` does.
        """
        if outcome.state == "feasible":
            point = self._measure(candidate.id, outcome)
            quality = scalarize(self._scalarize, outcome.objectives)
            self._offer(candidate.id, self._breeder.individual(candidate.genome), point, quality)

    @property
    def finished(self) -> str | None:
        """None: there is always another child."""
        return None

    @property
    def elites(self) -> tuple[int, ...]:
        """Ids of the candidates in the grid, in the order of their cells; those of other searchers have ids below 0."""
        return tuple(self._cells[cell] for cell in sorted(self._cells))

    def status(self) -> dict[str, float | int | str]:
        """Return how many cells have an elite, their share of the grid, and the sum of their qualities."""
        stats = self._grid.stats
        return {"elites": len(self._cells), "coverage": float(stats.coverage), "qd_score": float(stats.qd_score)}

    def _next(self) -> Candidate:
        if self._breeder.is_starting or len(self._cells) < 2:
            return self._breeder.start()
        draws = self._breeder.draws()
        elites = self.elites
        parents = [elites[draws.integer(len(elites))] for _ in range(2)]
        return self._breeder.child({id_: self._elites[id_] for id_ in parents}, draws)

    def _offer(self, id_: int, individual: Individual, point: tuple[float, ...], quality: float) -> None:
        if math.isfinite(quality) and self._grid.add_single(id_, quality, point)["status"]:
            cell = int(self._grid.index_of_single(point))
            self._elites.pop(self._cells.get(cell, id_), None)
            self._cells[cell] = id_
            self._elites[id_] = individual

    def _measure(self, who: int, outcome: Outcome) -> tuple[float, ...]:
        names = self._options.measures
        if names is None:
            point = outcome.objectives[:2]
            if len(point) < 2:
                raise ConfigError(
                    "search.options.measures: a grid needs two metrics, and there are fewer than two objectives; name "
                    "two metrics with scores per sample"
                )
        else:
            point = tuple(_mean(who, name, outcome) for name in names)
        if not all(math.isfinite(value) for value in point):
            raise ConfigError(f"candidate {who}: its measures are {point}; expected finite numbers")
        return point


def _mean(who: int, name: str, outcome: Outcome) -> float:
    column = np.asarray(outcome.samples.get(name, ()), dtype=np.float64)
    if not column.size:
        known = ", ".join(sorted(outcome.samples)) or "none"
        raise ConfigError(
            f"search.options.measures: candidate {who} has no scores per sample of {name!r}; known: {known}"
        )
    return float(column.mean())
