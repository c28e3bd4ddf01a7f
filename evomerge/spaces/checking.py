"""Whether a genome fits the dimensions of a space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evomerge.documents import dotted_path, first_difference
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.spaces.types import Dimension, Genome, Value


def check_genome(dimensions: Sequence[Dimension], genome: Genome) -> dict[str, Value]:
    """Check a genome and return the values of its active dimensions by name.

    Args:
        dimensions: in the order of the genome; a conditional one comes after the one it depends on.
        genome: one value a dimension.

    Raises:
        ConfigError: when the genome does not fit the dimensions.
    """
    if len(genome) != len(dimensions):
        text = f"expected {len(dimensions)} values, got {len(genome)}"
        raise ConfigError(f"genome: {text}; it belongs to another space")
    active: dict[str, Value] = {}
    for dimension, value in zip(dimensions, genome, strict=True):
        when = dimension.active_when
        if when is not None and active.get(when[0]) != when[1]:
            if value is not None:
                raise ConfigError(f"genome: {dimension.name} is not active here and must be None, got {value!r}")
            continue
        check_value(dimension, value)
        active[dimension.name] = value
    return active


def check_value(dimension: Dimension, value: Value) -> None:
    """Check the value of an active dimension.

    Raises:
        ConfigError: when it has another type or lies outside of the range.
    """
    if dimension.kind == "choice":
        if value not in dimension.choices:
            expected = "one of " + ", ".join(dimension.choices)
            raise ConfigError(f"genome: {dimension.name} must be {expected}, got {value!r}")
        return
    number = isinstance(value, int if dimension.kind == "int" else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(float(value or 0)) or not dimension.low <= float(value or 0) <= dimension.high:
        kind = "a whole number" if dimension.kind == "int" else "a number"
        text = f"must be {kind} in [{dimension.low:g}, {dimension.high:g}], got {value!r}"
        raise ConfigError(f"genome: {dimension.name} {text}")


def check_inverse(decode: Callable[[Genome], Recipe], genome: Genome, recipe: Recipe) -> Genome:
    """Return the genome if it decodes to the recipe: what `encode` promises.

    Raises:
        ConfigError: when it does not.
    """
    try:
        decoded = decode(genome)
    except ConfigError as error:
        raise _other_space(str(error).removeprefix("genome: ")) from None
    if decoded != recipe:
        place = first_difference(recipe.to_mapping(), decoded.to_mapping())
        raise _other_space(f"{dotted_path(place)} is not what the space gives there" if place else "")
    return genome


def _other_space(why: str) -> ConfigError:
    found = f" ({why})" if why else ""
    return ConfigError(f"recipe: no genome of this space decodes to it{found}; give a recipe that this space made")
