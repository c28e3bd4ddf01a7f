"""Between genomes (natural units) and points of the unit cube, for every searcher that works in the cube."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces.types import Dimension, Genome, Space, Value

Vector = NDArray[np.float64]


def genome_from_unit(space: Space, unit: Sequence[float] | Vector) -> Genome:
    """Return the genome of a point of the unit cube.

    Args:
        space: the space, with D dimensions.
        unit: shape (D,), one number in [0, 1] a dimension; numbers outside are clipped.

    Returns:
        One value a dimension; None where a conditional dimension is not active.

    Raises:
        ValueError: when the number of coordinates is not that of the dimensions.
    """
    dimensions = space.dimensions
    if len(unit) != len(dimensions):
        raise ValueError(f"a point of this space has {len(dimensions)} coordinates, got {len(unit)}")
    values = tuple(dimension.from_unit(float(number)) for dimension, number in zip(dimensions, unit, strict=True))
    return deactivate(dimensions, values)


def deactivate(dimensions: Sequence[Dimension], values: Sequence[Value]) -> Genome:
    """Return the values with None wherever a conditional dimension is not active.

    A dimension whose condition is on a dimension that is itself inactive is inactive too.
    """
    by_name = dict(zip((dimension.name for dimension in dimensions), values, strict=True))
    condition = {dimension.name: dimension.active_when for dimension in dimensions}

    def active(name: str) -> bool:
        when = condition[name]
        return when is None or (by_name[when[0]] == when[1] and active(when[0]))

    return tuple(value if active(dimension.name) else None for dimension, value in zip(dimensions, values, strict=True))


def unit_from_genome(space: Space, genome: Genome) -> Vector:
    """Return a point of the unit cube, shape (D,), that `genome_from_unit` maps onto the genome.

    An inactive dimension takes its default's place, or the middle where it has none.
    """
    point = [
        dimension.to_unit(dimension.default if value is None else value)
        if value is not None or dimension.default is not None
        else 0.5
        for dimension, value in zip(space.dimensions, genome, strict=True)
    ]
    return np.clip(np.asarray(point, dtype=np.float64), 0.0, 1.0)


def numeric_genome(space: Space, genome: Genome) -> Genome:
    """Return a genome with one value a dimension: where the space breeds, the one nearest to a bred genome."""
    nearest: Genome = space.numeric(genome) if hasattr(space, "numeric") else genome
    return nearest
