"""What of a merge method is searched and what is fixed: its metadata, and the `parameters:` of a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evomerge import operators
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError, RecipeError
from evomerge.operators import OperatorSpec, Parameter, Scalar
from evomerge.spaces.config import Range, SpaceConfig
from evomerge.spaces.types import Dimension, Value


@dataclass(frozen=True, slots=True)
class MethodGenes:
    """One method as a space sees it."""

    spec: OperatorSpec
    searched: Mapping[str, tuple[Parameter, Dimension]]
    """Parameter name -> its declaration and a nameless dimension, in declared order."""
    fixed: Mapping[str, Scalar]
    """Parameters that the space sets to one value."""


def method_genes(config: SpaceConfig) -> tuple[MethodGenes, ...]:
    """Return what is searched of each method of a space.

    Raises:
        ConfigError: an unknown method or parameter, a range upside down or beyond what the operator allows.
    """
    specs = [_spec(name) for name in config.methods]
    known = {parameter.name for spec in specs for parameter in spec.parameters}
    for name in config.parameters:
        if name not in known:
            of = " or ".join(repr(spec.name) for spec in specs)
            raise ConfigError(f"space.parameters.{name}: no such parameter of {of}{did_you_mean(name, known)}")
    return tuple(_genes(spec, config.parameters) for spec in specs)


def gene_value(parameter: Parameter, setting: object) -> Value:
    """Return the gene of a recipe's setting: the inverse of `setting_value`."""
    if parameter.kind == "bool" and isinstance(setting, bool):
        return "true" if setting else "false"
    if parameter.kind == "int" and isinstance(setting, float):
        return int(setting)
    return setting if isinstance(setting, (int, float, str)) and not isinstance(setting, bool) else None


def setting_value(parameter: Parameter, value: Value) -> Scalar:
    """Return a gene as it stands in a recipe."""
    if value is None:
        raise ConfigError(f"genome: the active parameter {parameter.name!r} has no value")
    return value == "true" if parameter.kind == "bool" else value


def _spec(name: str) -> OperatorSpec:
    try:
        return operators.get(name)
    except ConfigError as error:
        raise ConfigError(f"space.method: {error}") from None


def _genes(spec: OperatorSpec, ranges: Mapping[str, Range]) -> MethodGenes:
    searched: dict[str, tuple[Parameter, Dimension]] = {}
    fixed: dict[str, Scalar] = {}
    for parameter in spec.parameters:
        given = ranges.get(parameter.name)
        if isinstance(given, tuple):
            searched[parameter.name] = (parameter, _dimension(spec, parameter, given))
        elif given is not None:
            fixed[parameter.name] = _allowed(spec, parameter, given)
        elif parameter.search is not None:
            searched[parameter.name] = (parameter, _dimension(spec, parameter, parameter.search))
    return MethodGenes(spec, searched, fixed)


def _allowed(spec: OperatorSpec, parameter: Parameter, value: Scalar) -> Scalar:
    try:
        return parameter.check(value, spec.name)
    except RecipeError as error:
        raise ConfigError(f"space.parameters.{parameter.name}: {error}") from None


def _dimension(spec: OperatorSpec, parameter: Parameter, values: tuple[Scalar, ...]) -> Dimension:
    allowed = [_allowed(spec, parameter, value) for value in values]
    where = f"space.parameters.{parameter.name}"
    if parameter.kind in ("bool", "choice"):
        if len(set(allowed)) < max(2, len(allowed)):
            raise ConfigError(f"{where}: expected a list of at least two different values, or a single one")
        words = tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in allowed)
        usual = str(parameter.default).lower() if parameter.kind == "bool" else str(parameter.default)
        return Dimension(name="", kind="choice", choices=words, default=usual if usual in words else words[0])
    numbers = [float(value) for value in allowed]
    if len(numbers) != 2:
        raise ConfigError(f"{where}: expected [low, high] or a single value, got {len(numbers)} values")
    low, high = numbers
    if not low < high:
        raise ConfigError(f"{where}: the range [{low:g}, {high:g}] is empty; write [low, high] with low < high")
    default = min(high, max(low, float(parameter.default)))
    kind: Literal["int", "float"] = "int" if parameter.kind == "int" else "float"
    return Dimension(
        name="",
        kind=kind,
        low=low,
        high=high,
        scale=_scale(parameter, low, high),
        default=int(default) if kind == "int" else default,
    )


def _scale(parameter: Parameter, low: float, high: float) -> Literal["linear", "log", "logit"]:
    """Return the declared scale, or `linear` where the range reaches points at which that one is infinite."""
    defined = {"linear": True, "log": low > 0, "logit": low > 0 and high < 1}
    return parameter.scale if defined[parameter.scale] and math.isfinite(high) else "linear"
