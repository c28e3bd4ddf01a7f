"""Dimensions, genomes and the `Space` interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from evomerge.recipe import Recipe

Value = bool | int | float | str | None
"""One gene in natural units; None where a conditional dimension is not active."""
Genome = tuple[Value, ...]
"""One value a dimension, in the order of `Space.dimensions`: what the journal stores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One thing that may vary."""

    name: str
    """Unique, readable, `/`-separated: `weight/math/layers.0-3/attention`, `method`."""
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 1.0
    """Closed range of numeric kinds, `low < high`, natural units."""
    scale: Literal["linear", "log", "logit"] = "linear"
    choices: tuple[str, ...] = ()
    default: Value = None
    """Where a search starts."""
    active_when: tuple[str, str] | None = None
    """(name of a choice dimension, the choice under which this dimension exists)."""

    def from_unit(self, unit: float) -> Value:
        """Map [0, 1] onto the dimension; numbers outside are clipped. Choices have equal shares of [0, 1]."""
        unit = min(1.0, max(0.0, unit))
        if self.kind == "choice":
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        low, high = self._warp(self.low), self._warp(self.high)
        value = min(self.high, max(self.low, self._unwarp(low + unit * (high - low))))
        return round(value) if self.kind == "int" else value

    def to_unit(self, value: Value) -> float:
        """Map a value into [0, 1]: the inverse of `from_unit` to rounding; a choice gives its middle."""
        if self.kind == "choice":
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        if value is None or isinstance(value, str):
            return 0.5
        low, high = self._warp(self.low), self._warp(self.high)
        return (self._warp(float(value)) - low) / (high - low)

    def _warp(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        if self.scale == "logit":
            return math.log(value / (1.0 - value))
        return value

    def _unwarp(self, value: float) -> float:
        if self.scale == "log":
            return math.exp(value)
        if self.scale == "logit":
            return 1.0 / (1.0 + math.exp(-value))
        return value


class Space(Protocol):
    """What may vary: decodes a genome into a recipe. Pure; `encode` and `decode` are exact inverses."""

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in the order of a genome."""
        ...

    @property
    def start(self) -> Genome:
        """The genome where a local search starts."""
        ...

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        ...

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of this space.

        Raises:
            ConfigError: when no genome of this space decodes to the recipe.
        """
        ...
