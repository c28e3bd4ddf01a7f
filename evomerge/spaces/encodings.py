"""How a route is written as a genome: indicators and scales, or choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Protocol

from evomerge.errors import ConfigError
from evomerge.spaces.config import SpaceConfig
from evomerge.spaces.routes import Hop, Route, Row, Step
from evomerge.spaces.scalings import (
    FixedScaling,
    MatrixScaling,
    NetworkScaling,
    Scaling,
    SlotScaling,
    number,
    scale_dimension,
)
from evomerge.spaces.types import Dimension, Genome, Value

START_SIGMA = 0.17
"""The first standard deviation, as a share of each range, that initial indicators are meant for: the default
`sigma` of the searchers that work in the unit cube."""
INDICATOR_SIGMA = 2 * START_SIGMA
"""The same in natural units of an indicator, whose range [-1, 1] is 2 wide."""

DROP, KEEP = "drop", "keep"


class Encoding(Protocol):
    """Dimensions, and the routes that checked genomes stand for."""

    dimensions: tuple[Dimension, ...]
    start: Genome

    def route(self, genome: Genome) -> Route:
        """Return the route of a genome that fits the dimensions."""
        ...

    def genome(self, route: Route) -> Genome:
        """Return a genome of a route, if there is one; else one of another route.

        Raises:
            ConfigError: when there is certainly none.
        """
        ...


class IndicatorEncoding:
    """An indicator for each slot, kept where it is positive, and scales of any kind.

    Akiba et al. 2025. The indicators of model A's first repetition start at two standard deviations, the others
    where a share `initial_keep` of first candidates keeps each (for one half, at 0); the start itself is model A.
    The first slot is kept whatever its indicator says. A genome has more numbers than its route needs, so many
    genomes stand for one route.
    """

    def __init__(self, config: SpaceConfig, depths: Mapping[str, int], max_hops: int | None) -> None:
        self._row = Row.of(depths, config.repeats)
        self._max_hops = max_hops
        self._scaling = _scaling(config, self._row)
        rest = min(0.0, max(-1.0, INDICATOR_SIGMA * NormalDist().inv_cdf(config.initial_keep)))
        indicators = tuple(
            Dimension(
                name=f"keep/{self._row.label(slot)}",
                kind="float",
                low=-1.0,
                high=1.0,
                default=2 * INDICATOR_SIGMA if slot <= self._row.last else rest,
            )
            for slot in range(self._row.num_slots)
        )
        self._rest = rest
        self.dimensions = (*indicators, *self._scaling.dimensions)
        self.start: Genome = tuple(dimension.default for dimension in self.dimensions)

    def route(self, genome: Genome) -> Route:
        """Return the route of a genome; one over the limit is repaired, not refused."""
        indicators = [number(value) for value in genome[: self._row.num_slots]]
        kept = [slot for slot, indicator in enumerate(indicators) if indicator > 0]
        path = self._row.limited(kept, indicators, self._max_hops)
        return _hops(self._row, path, self._scaling.scales(path, genome[self._row.num_slots :]))

    def genome(self, route: Route) -> Genome:
        """Return the genome that keeps each hop at its earliest slot."""
        path = self._row.place([(hop.alias, hop.layer) for hop in route])
        indicators: list[Value] = [self._rest] * self._row.num_slots
        for step in path:
            if step.slot < self._row.num_slots:
                indicators[step.slot] = 2 * INDICATOR_SIGMA
        return (*indicators, *self._scaling.values(path, [hop.scale for hop in route]))


class MixedEncoding:
    """Choices and scales: whether a slot is kept and, only if it is, from which source and with which scale.

    A slot is a depth and not a layer: slot p of a repetition takes layer p of the chosen source, so that a route
    goes down through the sources side by side (SMM-Bench, arXiv:2509.02555). That a dropped slot has no scale is
    the structure that makes or breaks mixed searchers (ICatCMA, arXiv:2504.00491).
    """

    def __init__(self, config: SpaceConfig, depths: Mapping[str, int], max_hops: int | None) -> None:
        self._aliases = tuple(depths)
        self._depths = dict(depths)
        self._max_hops = max_hops
        self._fixed = config.scales == "fixed"
        limits = (1.0, 1.0) if config.scales == "fixed" else config.scales
        # The row of depths is that of one source; which source is a choice.
        self._row = Row(tuple(("", depth) for depth in range(max(depths.values()))), config.repeats)
        self._end = depths[self._aliases[0]] - 1
        dimensions: list[Dimension] = []
        self._places: list[dict[str, int]] = []
        for slot in range(self._row.num_slots + 1):
            own = self._slot_dimensions(slot, limits)
            self._places.append({key: len(dimensions) + index for index, key in enumerate(own)})
            dimensions += own.values()
        self.dimensions = tuple(dimensions)
        self.start: Genome = self.genome(tuple(Hop(self._aliases[0], layer) for layer in range(self._end + 1)))

    def route(self, genome: Genome) -> Route:
        """Return the route of a genome; one over the limit loses its last slots."""
        kept = [slot for slot in range(1, self._row.num_slots) if self._value(genome, slot, "keep") == KEEP]
        hops = self._hops(kept, genome)
        while self._max_hops is not None and kept and len(hops) > self._max_hops:
            kept.pop()
            hops = self._hops(kept, genome)
        return hops

    def genome(self, route: Route) -> Genome:
        """Return the genome that keeps each hop at its earliest slot."""
        values: list[Value] = [DROP if dimension.kind == "choice" else None for dimension in self.dimensions]
        for places in self._places:
            if "source" in places:
                values[places["source"]] = None
        for slot in (0, self._row.num_slots):
            if "scale" in self._places[slot]:
                values[self._places[slot]["scale"]] = 1.0
        slot, size = -1, len(self._row.layers)
        for count, hop in enumerate(route):
            slot += 1 + (hop.layer - slot - 1) % size
            if slot >= self._row.num_slots:
                if count < len(route) - 1:
                    raise ConfigError(f"recipe: the route needs more than {self._row.repeats} repetitions")
                slot = self._row.num_slots
            written: dict[str, Value] = {"keep": KEEP, "source": hop.alias, "scale": hop.scale}
            for key, place in self._places[slot].items():
                values[place] = written[key]
        return tuple(values)

    def _hops(self, kept: Sequence[int], genome: Genome) -> Route:
        hops = [self._hop(slot, genome) for slot in (0, *kept)]
        if (hops[-1].alias, hops[-1].layer) != (self._aliases[0], self._end):
            hops.append(self._hop(self._row.num_slots, genome))
        return tuple(hops)

    def _hop(self, slot: int, genome: Genome) -> Hop:
        scale = 1.0 if self._fixed else number(self._value(genome, slot, "scale"))
        if slot == self._row.num_slots:
            return Hop(self._aliases[0], self._end, scale)
        layer = slot % len(self._row.layers)
        chosen = self._value(genome, slot, "source") if slot else self._aliases[0]
        return Hop(str(chosen) if chosen is not None else self._sources_at(layer)[0], layer, scale)

    def _value(self, genome: Genome, slot: int, key: str) -> Value:
        place = self._places[slot].get(key)
        return genome[place] if place is not None else None

    def _sources_at(self, layer: int) -> tuple[str, ...]:
        return tuple(alias for alias in self._aliases if layer < self._depths[alias])

    def _slot_dimensions(self, slot: int, limits: tuple[float, float]) -> dict[str, Dimension]:
        """Return the dimensions of a slot by what they say; the first and the appended hop only have a scale."""
        label = "end" if slot == self._row.num_slots else "{}/{}".format(*divmod(slot, len(self._row.layers)))
        own: dict[str, Dimension] = {}
        when = None
        if 0 < slot < self._row.num_slots:
            layer = slot % len(self._row.layers)
            first_pass = slot <= self._end
            usual = KEEP if first_pass else DROP
            own["keep"] = Dimension(name=f"keep/{label}", kind="choice", choices=(DROP, KEEP), default=usual)
            when = (own["keep"].name, KEEP)
            here = self._sources_at(layer)
            if len(here) > 1:
                own["source"] = Dimension(
                    name=f"source/{label}", kind="choice", choices=here, default=here[0], active_when=when
                )
        if not self._fixed:
            scale = scale_dimension(f"scale/{label}", limits)
            own["scale"] = Dimension(
                name=scale.name, kind="float", low=scale.low, high=scale.high, default=scale.default, active_when=when
            )
        return own


def create_encoding(config: SpaceConfig, depths: Mapping[str, int]) -> Encoding:
    """Return the encoding that a `space:` section names.

    Args:
        config: the section.
        depths: alias -> number of layers, in the order of the route.
    """
    max_hops = _max_hops(config, next(iter(depths.values())))
    if config.encoding == "mixed":
        return MixedEncoding(config, depths, max_hops)
    return IndicatorEncoding(config, depths, max_hops)


def _max_hops(config: SpaceConfig, depth: int) -> int | None:
    limits = [config.max_hops] if config.max_hops is not None else []
    if config.max_parameters is not None:
        limits.append(int(config.max_parameters * depth + 1e-9))
        if limits[-1] < 2:
            text = f"{config.max_parameters:g} times {depth} layers leaves no room for the first and the last"
            raise ConfigError(f"space.max_parameters: {text}; give at least {2 / depth:g}")
    return min(limits, default=None)


def _scaling(config: SpaceConfig, row: Row) -> Scaling:
    if config.scales == "fixed":
        return FixedScaling()
    if config.encoding == "paper":
        return MatrixScaling(row, config.scales)
    return NetworkScaling(row, config.scales) if config.encoding == "network" else SlotScaling(row, config.scales)


def _hops(row: Row, path: Sequence[Step], scales: Sequence[float]) -> Route:
    return tuple(Hop(*row.layers[step.row], scale) for step, scale in zip(path, scales, strict=True))
