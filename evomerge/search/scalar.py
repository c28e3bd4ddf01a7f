"""Several objectives seen as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from evomerge.errors import ConfigError

Scalarize = Literal["mean", "min"] | tuple[float, ...]
"""`mean`, `min`, or one weight an objective (a plain weighted sum: weights are not normalised)."""


def scalarize(rule: Scalarize, objectives: Sequence[float]) -> float:
    """Return one number, to be maximised, for objectives that are all maximised.

    Raises:
        ConfigError: when there is no objective, or when the number of weights is not that of the objectives.

    Example:
        >>> scalarize("mean", (0.2, 0.6)), scalarize("min", (0.2, 0.6)), scalarize((1.0, 2.0), (0.25, 0.5))
        (0.4, 0.2, 1.25)
    """
    if not objectives:
        raise ConfigError("search.scalarize: there is no objective to scalarise; name at least one")
    if rule == "mean":
        return sum(objectives) / len(objectives)
    if rule == "min":
        return min(objectives)
    if len(rule) != len(objectives):
        raise ConfigError(
            f"search.scalarize: {len(rule)} weights for {len(objectives)} objectives; give one weight an objective"
        )
    return sum(weight * value for weight, value in zip(rule, objectives, strict=True))
