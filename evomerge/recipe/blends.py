"""How sources blend at one place of the model: the settings as written, and their resolution.

A blend is resolved from a chain of settings, the outermost first. An inner blend overrides parameter by
parameter; one that names another method discards what it would inherit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from evomerge import operators
from evomerge.documents import Key, did_you_mean
from evomerge.errors import ConfigError, RecipeError
from evomerge.operators.metadata import OperatorSpec, Parameter, Resolved, Scalar, Setting
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.lines import Lines


class BlendConfig(BaseModel):
    """A method and its parameters: `{method: ties, weight: {math: 0.7, ja: 0.4}, density: 0.5}`.

    Every other key is a parameter of the method: one value, or one value a source alias. Numbers are floats.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Any]

    method: str | None = None
    base: str | None = None
    """Alias of the base of this blend; left out: the recipe's."""

    @model_validator(mode="before")
    @classmethod
    def _plain_settings(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = cls.model_fields
        return {key: value if key in own else _setting((str(key),), value) for key, value in data.items()}

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The parameters by name, as written."""
        return self.__pydantic_extra__

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return self.method is None and self.base is None and not self.settings


class SegmentConfig(BlendConfig):
    """A blend for a range of the flat parameter index."""

    until: int | None = Field(default=None, ge=1)
    """First index after the range; the last segment leaves it out and reaches to the end."""
    noise: dict[str, float] = Field(default_factory=dict)
    """Standard normal noise that is added: its seed, a whole number in [0, 2^64), and what it is multiplied by."""

    @field_validator("noise", mode="before")
    @classmethod
    def _seeds(cls, noise: Any) -> Any:
        if not isinstance(noise, Mapping):
            return noise
        found = {}
        for key, scale in noise.items():
            seed = str(key)
            if not (seed.isascii() and seed.isdigit() and str(int(seed)) == seed and int(seed) < 1 << 64):
                raise ValueError(f"the seed {key!r:.60} is not a whole number in [0, 2^64)")
            if isinstance(scale, (bool, str)) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
                raise ValueError(f"expected a finite number for seed {seed}, got {scale!r:.60}")
            found[seed] = float(scale)
        return found


def _setting(path: Key, value: Any) -> Setting:
    if isinstance(value, Mapping):
        return {str(alias): _scalar((*path, str(alias)), item) for alias, item in value.items()}
    return _scalar(path, value)


def _scalar(path: Key, value: Any) -> Scalar:
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value) + 0.0  # the sum turns -0.0 into 0.0
    error = RecipeError(f"expected a finite number, true, false or a word, got {value!r:.60}")
    raise ValidationError.from_exception_data(
        "Blend", [InitErrorDetails(type="value_error", loc=path, input=value, ctx={"error": error})]
    )


@dataclass(frozen=True, slots=True)
class Blend:
    """A resolved blend: everything a kernel needs besides the tensors."""

    method: str
    sources: tuple[str, ...]
    """Aliases in the order of their declaration, the base not counted where the method requires one."""
    base: str | None
    """Alias of the base, where the method requires one; else None."""
    params: Mapping[str, Resolved]
    """Every declared parameter; a tuple with one value a source where it is per source."""
    lines: Lines | None = None
    """How much of the result is kept, as opposed to the base; None: all of it."""


Link = tuple[Key, BlendConfig | None]
"""Where a blend stands in the document, and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place at which sources blend."""

    path: Key
    """Key path of the layer or part."""
    taken: Sequence[str]
    """Aliases that take part, in the order of declaration."""
    aliases: Collection[str]
    """All aliases of the recipe."""
    base: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """A setting and where it was written."""

    path: Key
    value: Setting


def copy_of(alias: str) -> Blend:
    """Return the blend that takes one source as it is."""
    return Blend("linear", (alias,), None, operators.get("linear").complete({"weight": 1.0}, (alias,)))


def resolve(chain: Sequence[Link], place: Place) -> Blend:
    """Resolve a chain of blends, the outermost first.

    Raises:
        RecipeError: for an unknown method, parameter or alias, a value out of range, too few or too many
            sources, or a chain that names no method; the text names the key path.
    """
    method: str | None = None
    where: Key = place.path
    base: tuple[Key, str] | None = None
    found: dict[str, _Found] = {}
    outer = place
    for path, config in chain:
        if config is None:
            continue
        if config.method is not None:
            if method is not None and config.method != method:
                found, base, place = {}, None, outer
            method, where = config.method, (*path, "method")
        if config.base is not None:
            base = ((*path, "base"), config.base)
            place = _with_base(*base, place)
        written = {name: _Found((*path, name), value) for name, value in config.settings.items()}
        if method is not None:
            # Checked here as well as below, for what a later link discards.
            _check(_spec(method, where), written, place)
        found |= written
    if method is None:
        raise _no_method(found, place)
    spec = _spec(method, where)
    if base is not None and spec.base == "ignored":
        raise RecipePathError(base[0], f"method {method!r} takes no base; leave it out")
    _check(spec, found, place)
    return _complete(spec, where, found, place)


def _with_base(path: Key, alias: str, place: Place) -> Place:
    if alias not in place.aliases:
        raise RecipePathError(path, f"{alias!r} is not a source of this recipe{did_you_mean(alias, place.aliases)}")
    return replace(place, base=alias)


def _no_method(found: Mapping[str, _Found], place: Place) -> RecipePathError:
    for name, item in found.items():
        if did_you_mean(name, ["method"]).startswith("; did"):
            return RecipePathError(item.path, f"unknown key {name!r}; did you mean 'method'?")
    text = "no merge method is given for this part; name one, for instance `blend: {method: linear}`"
    return RecipePathError(place.path, text)


def _spec(method: str, path: Key) -> OperatorSpec:
    try:
        return operators.get(method)
    except ConfigError as error:
        raise RecipePathError(path, str(error)) from None


def _check(spec: OperatorSpec, found: Mapping[str, _Found], place: Place) -> None:
    known = {parameter.name: parameter for parameter in spec.parameters}
    for name, item in found.items():
        if name not in known:
            hint = did_you_mean(name, [*known, "method"])
            raise RecipePathError(item.path, f"method {spec.name!r} has no parameter {name!r}{hint}")
        _check_setting(spec, known[name], item, place)


def _check_setting(spec: OperatorSpec, parameter: Parameter, item: _Found, place: Place) -> None:
    if not isinstance(item.value, Mapping):
        _check_value(spec, parameter, item.value, item.path)
        return
    if not parameter.per_source:
        text = f"method {spec.name!r}: parameter {parameter.name!r} takes one value, not one a source"
        raise RecipePathError(item.path, text)
    for alias, value in item.value.items():
        path = (*item.path, alias)
        if alias not in place.aliases:
            raise RecipePathError(path, f"{alias!r} is not a source of this recipe{did_you_mean(alias, place.aliases)}")
        if alias == place.base and spec.base == "required":
            text = f"the base of method {spec.name!r} has no {parameter.name!r} of its own; leave {alias!r} out"
            raise RecipePathError(path, text)
        inherited = item.path[: len(place.path)] != place.path
        if alias not in place.taken and not inherited:
            raise RecipePathError(path, f"{alias!r} is not among the sources that this layer takes")
        _check_value(spec, parameter, value, path)


def _check_value(spec: OperatorSpec, parameter: Parameter, value: Scalar, path: Key) -> None:
    try:
        parameter.check(value, spec.name)
    except RecipeError as error:
        raise RecipePathError(path, str(error)) from None


def _complete(spec: OperatorSpec, where: Key, found: Mapping[str, _Found], place: Place) -> Blend:
    named = {alias for item in found.values() if isinstance(item.value, Mapping) for alias in item.value}
    counted = [alias for alias in place.taken if alias != place.base or (spec.base == "ignored" and alias in named)]
    settings: dict[str, Setting] = {}
    for name, item in found.items():
        value = item.value
        if isinstance(value, Mapping):
            # What is inherited may name sources that this layer does not take.
            value = {alias: one for alias, one in value.items() if alias in counted}
        settings[name] = value
    if spec.base == "required" and place.base is None:
        text = f"method {spec.name!r} needs a base; name it, for instance `base: {place.taken[0]}`"
        raise RecipePathError(where, text)
    try:
        params = spec.complete(settings, counted)
    except RecipeError as error:
        raise RecipePathError(where, str(error)) from None
    return Blend(spec.name, tuple(counted), place.base if spec.base == "required" else None, params)
