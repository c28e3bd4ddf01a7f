"""Where the scales of a route come from: a matrix from layer to layer, one each slot, or a small network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from evomerge.errors import ConfigError
from evomerge.spaces.routes import Row, Step
from evomerge.spaces.types import Dimension, Value

HIDDEN = 8
"""Hidden units of the network."""
WEIGHT_RANGE = 2.0
"""Largest weight of the network: with inputs in [-1, 1], enough to saturate it."""


class Scaling(Protocol):
    """Dimensions, and the scales that their values give to the hops of a path."""

    dimensions: tuple[Dimension, ...]

    def scales(self, path: Sequence[Step], values: Sequence[Value]) -> list[float]:
        """Return the scale of each hop."""
        ...

    def values(self, path: Sequence[Step], scales: Sequence[float]) -> list[Value]:
        """Return values that give these scales, where there are any; what they do not determine is at its default."""
        ...


class FixedScaling:
    """All scales are one: the ablation of Akiba et al. 2025."""

    dimensions: tuple[Dimension, ...] = ()

    def scales(self, path: Sequence[Step], values: Sequence[Value]) -> list[float]:  # noqa: ARG002  one interface
        """Return ones."""
        return [1.0] * len(path)

    def values(self, path: Sequence[Step], scales: Sequence[float]) -> list[Value]:  # noqa: ARG002  one interface
        """Return nothing."""
        return []


class SlotScaling:
    """One scale a slot, and one for model A's last layer where it is appended."""

    def __init__(self, row: Row, limits: tuple[float, float]) -> None:
        self.dimensions = tuple(
            scale_dimension(f"scale/{row.label(slot)}", limits) for slot in range(row.num_slots + 1)
        )

    def scales(self, path: Sequence[Step], values: Sequence[Value]) -> list[float]:
        """Return the scales of the slots on the path."""
        return [number(values[step.slot]) for step in path]

    def values(self, path: Sequence[Step], scales: Sequence[float]) -> list[Value]:
        """Return the scales by slot."""
        values: list[Value] = [dimension.default for dimension in self.dimensions]
        for step, scale in zip(path, scales, strict=True):
            values[step.slot] = scale
        return values


class MatrixScaling:
    """W in R^(M x M): W_ij scales what goes from layer i to layer j; what enters the first layer is not scaled."""

    def __init__(self, row: Row, limits: tuple[float, float]) -> None:
        labels = [f"{alias}.{layer}" for alias, layer in row.layers]
        self._size = len(labels)
        self.dimensions = tuple(
            scale_dimension(f"scale/{origin}/{target}", limits) for origin in labels for target in labels
        )

    def scales(self, path: Sequence[Step], values: Sequence[Value]) -> list[float]:
        """Return the entries on the path."""
        return [1.0, *(number(values[entry]) for entry in self._entries(path))]

    def values(self, path: Sequence[Step], scales: Sequence[float]) -> list[Value]:
        """Return the matrix, row by row."""
        values: list[Value] = [dimension.default for dimension in self.dimensions]
        for entry, scale in zip(self._entries(path), scales[1:], strict=True):
            values[entry] = scale
        return values

    def _entries(self, path: Sequence[Step]) -> list[int]:
        return [self._size * origin.row + target.row for origin, target in pairwise(path)]


class NetworkScaling:
    """W_ij = π_θ(i, j, t), a network with one hidden layer over (from, to, step).

    π_θ = 1 + b·tanh(w2·tanh(W1 x + b1) + b2), where x is (i, j, t) mapped to [-1, 1] and b the distance of 1 from
    the end of the range on that side. All weights zero give scales of one. The paper offers a network and leaves
    its shape open.
    """

    def __init__(self, row: Row, limits: tuple[float, float]) -> None:
        self._row = row
        self._limits = limits
        weights = range(5 * HIDDEN + 1)
        self.dimensions = tuple(
            Dimension(name=f"network/{index}", kind="float", low=-WEIGHT_RANGE, high=WEIGHT_RANGE, default=0.0)
            for index in weights
        )

    def scales(self, path: Sequence[Step], values: Sequence[Value]) -> list[float]:
        """Return what the network says of each hop; what enters the first layer is not scaled."""
        weights = [number(value) for value in values]
        num_rows, num_slots = len(self._row.layers), self._row.num_slots
        scales = [1.0]
        for count, (origin, target) in enumerate(pairwise(path), start=1):
            inputs = (_spread(origin.row, num_rows), _spread(target.row, num_rows), _spread(count, num_slots + 1))
            scales.append(self._scale(inputs, weights))
        return scales

    def values(self, path: Sequence[Step], scales: Sequence[float]) -> list[Value]:  # noqa: ARG002  one interface
        """Return the weights of the network whose scales are all one.

        Raises:
            ConfigError: for other scales: weights that give them exactly can in general not be found.
        """
        if any(scale != 1.0 for scale in scales):
            raise ConfigError("recipe: scales other than 1 cannot be written as weights of a network; use `hop_scales`")
        return [0.0] * len(self.dimensions)

    def _scale(self, inputs: tuple[float, float, float], weights: Sequence[float]) -> float:
        output = weights[5 * HIDDEN]
        for unit in range(HIDDEN):
            first = weights[4 * unit : 4 * unit + 4]
            total = first[3] + sum(weight * value for weight, value in zip(first[:3], inputs, strict=True))
            output += weights[4 * HIDDEN + unit] * math.tanh(total)
        bounded = math.tanh(output)
        low, high = self._limits
        return 1.0 + bounded * (high - 1.0 if bounded > 0 else 1.0 - low)


def scale_dimension(name: str, limits: tuple[float, float]) -> Dimension:
    """Return the dimension of one scale, which starts at 1."""
    return Dimension(name=name, kind="float", low=limits[0], high=limits[1], default=1.0)


def number(value: Value) -> float:
    """Return a numeric gene as a float.

    Raises:
        ConfigError: for a gene that is none, which a checked genome does not have.
    """
    if isinstance(value, (int, float)):
        return float(value)
    raise ConfigError(f"genome: expected a number, got {value!r}")


def _spread(index: int, count: int) -> float:
    """Map 0 ... count - 1 onto [-1, 1]."""
    return 2.0 * index / (count - 1) - 1.0 if count > 1 else 0.0
