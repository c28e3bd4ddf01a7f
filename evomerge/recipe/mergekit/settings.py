"""The value of a mergekit parameter for one tensor: filters, gradients, types."""

from __future__ import annotations

import math
from typing import Literal

from evomerge.recipe.mergekit.document import Condition, Scalar, Setting

Kind = Literal["float", "int", "bool"]


def evaluate(setting: Setting, name: str, t: float, kind: Kind) -> Scalar | None:
    """Return the value of a setting for a tensor, or None where no filter of it meets the name.

    Args:
        setting: as written.
        name: of the tensor, which filters are looked for in.
        t: position of the layer in its slice, from 0 to 1, at which gradients are read.
        kind: of the parameter; numbers between two points of a gradient are interpolated, others picked.

    Raises:
        ValueError: for a value of another kind.
    """
    for condition in setting:
        if condition.filter is None or condition.filter in name:
            return _at(condition, t, kind)
    return None


def _at(condition: Condition, t: float, kind: Kind) -> Scalar | None:
    values = [coerced(value, kind) for value in condition.values]
    if not values:
        return None
    place = t * (len(values) - 1)
    if kind == "bool":
        return values[int(place)]
    below = int(place)
    above = min(len(values) - 1, below + 1)
    share = place - below
    return coerced((1 - share) * float(values[below]) + share * float(values[above]), kind)


def coerced(value: Scalar, kind: Kind) -> Scalar:
    """Return a value in its kind; texts that spell a number or truth value count as it, as in mergekit.

    Raises:
        ValueError: when it is of another kind.
    """
    if kind == "bool":
        words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        word = str(value).lower()
        if word not in words:
            raise ValueError(f"expected true or false, got {value!r:.60}")
        return words[word]
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"expected a number, got {value!r:.60}") from None
    if not math.isfinite(number) or (kind == "int" and number != int(number)):
        raise ValueError(f"expected a {'whole' if kind == 'int' else 'finite'} number, got {value!r:.60}")
    return int(number) if kind == "int" else number
