"""What an operator is, as data: parameters with type, range, scale and default. No tensors here.

A search space is built from these declarations, a recipe is checked and completed against them, and
`evomerge operators --json` prints them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from evomerge.documents import did_you_mean
from evomerge.errors import RecipeError

Scalar = bool | int | float | str
"""One parameter's value."""
Setting = Scalar | Mapping[str, Scalar]
"""As written in a recipe: one value, or one value a source alias."""
Resolved = Scalar | tuple[Scalar, ...]
"""As a kernel receives it: one value, or one value a source, in the order of the tensors."""
StatisticKind = Literal["fisher", "adam", "gram"]
"""What is measured of a source beforehand, and kept in files: a diagonal Fisher, Adam's second moments, Gram matrices.
"""
SMALLEST_SUM = 1e-8
"""A sum of weights nearer to zero than this divides by 1 instead (mergekit's rule)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One hyper-parameter of an operator."""

    name: str
    kind: Literal["float", "int", "bool", "choice"] = "float"
    default: Scalar
    low: float | None = None
    """Smallest allowed value (None: unbounded)."""
    high: float | None = None
    """Largest allowed value (None: unbounded)."""
    low_open: bool = False
    """Whether `low` itself is excluded."""
    search: tuple[float, float] | None = None
    """The range that is searched when a space names none; None: searched only on request."""
    scale: Literal["linear", "log", "logit"] = "linear"
    choices: tuple[str, ...] = ()
    per_source: bool = False
    """Whether each source may have its own value."""
    summary: str = ""

    def check(self, value: Scalar, method: str) -> Scalar:
        """Return the value in its declared type.

        Raises:
            RecipeError: for a wrong type, a value out of range, or an unknown choice.
        """
        where = f"method {method!r}: parameter {self.name!r}"
        if self.kind == "choice":
            if value not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise RecipeError(f"{where} cannot be {value!r}{hint}")
            return value
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise RecipeError(f"{where} must be true or false, got {value!r}")
            return value
        if isinstance(value, (bool, str)) or not math.isfinite(value):
            raise RecipeError(f"{where} must be a finite number, got {value!r}")
        if self.kind == "int" and value != int(value):
            raise RecipeError(f"{where} must be a whole number, got {value!r}")
        below = self.low is not None and (value < self.low or (self.low_open and value == self.low))
        above = self.high is not None and value > self.high
        if below or above:
            raise RecipeError(f"{where} must lie in {self.range_text()}, got {value!r}")
        return int(value) if self.kind == "int" else float(value)

    @property
    def range(self) -> tuple[Scalar, ...]:
        """What a space may search it over: the two ends of a range, or all values.

        `search` where it is given, else the allowed range. An end that is open is replaced by a hundredth of the
        default; one that is unbounded by 0 below, and by twice the default above.
        """
        if self.kind == "bool":
            return False, True
        if self.kind == "choice":
            return self.choices
        if self.search is not None:
            return self.search
        usual = float(self.default)
        low = 0.0 if self.low is None else usual / 100 if self.low_open else self.low
        return low, 2 * usual if self.high is None else self.high

    def range_text(self) -> str:
        """Return the allowed range as an interval, for instance `(0, 1]`."""
        left = "(" if self.low is None or self.low_open else "["
        low = "-inf" if self.low is None else f"{self.low:g}"
        return f"{left}{low}, {'inf)' if self.high is None else f'{self.high:g}]'}"


Invariant = Literal[
    "permutation", "scale", "task_scale", "translation", "neutral_weight", "idempotent", "single", "identical"
]
"""A law that a method obeys with default parameters; `evomerge.testing.operators` checks those declared.

* permutation: the order of the sources (with their parameters) does not change one bit.
* scale: multiplying every tensor, the base too, multiplies the result.
* task_scale: multiplying the task vectors multiplies the result's task vector.
* translation: adding one tensor to every input, the base too, adds it to the result.
* neutral_weight: a source of weight 0 is the same as no source.
* idempotent: inputs all equal, the base too, give that tensor.
* single: one source gives that source.
* identical: equal sources give that source.
"""
TASK_LAWS: tuple[Invariant, ...] = (
    "permutation",
    "scale",
    "task_scale",
    "translation",
    "neutral_weight",
    "idempotent",
)
"""What most methods that merge task vectors obey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpec:
    """What a merge method needs and takes."""

    name: str
    family: str
    summary: str
    paper: str
    """Authors, year and identifier, or where the definition comes from."""
    kernel: str
    """Where the tensor function is: `module:function`."""
    parameters: tuple[Parameter, ...]
    base: Literal["required", "ignored"]
    min_sources: int = 1
    """Fewest sources, the base not counted."""
    max_sources: int | None = None
    scope: Literal["element", "row", "tensor", "model"] = "element"
    """The widest region that one output element can depend on."""
    random: bool = False
    """Whether the kernel draws masks from `Context.seed`."""
    needs: tuple[str, ...] = ()
    """Kinds of statistic that every source must have; the name of a parameter stands for the kind that is its value."""
    adapters: bool = False
    """Whether it works on low-rank factors: every source must be a LoRA adapter on the base."""
    invariants: tuple[Invariant, ...] = ()

    def data(self) -> dict[str, Any]:
        """Return everything as plain data, each parameter with its `range`."""
        parameters = [{**asdict(parameter), "range": parameter.range} for parameter in self.parameters]
        return {**asdict(self), "parameters": parameters}

    def parameter(self, name: str) -> Parameter:
        """Return the declaration of a parameter.

        Raises:
            RecipeError: when the method has none of that name.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        hint = did_you_mean(name, [parameter.name for parameter in self.parameters])
        raise RecipeError(f"method {self.name!r} has no parameter {name!r}{hint}")

    def complete(self, settings: Mapping[str, Setting], sources: Sequence[str]) -> dict[str, Resolved]:
        """Check the settings of a recipe and fill in defaults.

        Args:
            settings: parameter name to value, or to a mapping from source alias to value. A source that such
                a mapping leaves out has the default, except for `weight`: there it has 0 (it takes no part).
            sources: aliases of the blended sources, the base not counted, in the order of the tensors.

        Returns:
            Every declared parameter, in declared order; a tuple with one value a source where per source.

        Raises:
            RecipeError: unknown parameter or alias, a value out of range, too few or too many sources.
        """
        self.check_count(len(sources))
        for name in settings:
            self.parameter(name)
        resolved: dict[str, Resolved] = {}
        for parameter in self.parameters:
            value = settings.get(parameter.name, parameter.default)
            if not parameter.per_source:
                if isinstance(value, Mapping):
                    raise RecipeError(f"method {self.name!r}: parameter {parameter.name!r} takes one value for all")
                resolved[parameter.name] = parameter.check(value, self.name)
            else:
                resolved[parameter.name] = self._per_source(parameter, value, sources)
        return resolved

    def _per_source(self, parameter: Parameter, value: Setting, sources: Sequence[str]) -> tuple[Scalar, ...]:
        if not isinstance(value, Mapping):
            return (parameter.check(value, self.name),) * len(sources)
        for alias in value:
            if alias not in sources:
                hint = did_you_mean(alias, sources)
                raise RecipeError(
                    f"method {self.name!r}: parameter {parameter.name!r} names {alias!r}, "
                    f"which is not a blended source{hint}"
                )
        absent: Scalar = 0.0 if parameter.name == "weight" else parameter.default
        return tuple(parameter.check(value.get(alias, absent), self.name) for alias in sources)

    def statistics(self, params: Mapping[str, Resolved]) -> tuple[StatisticKind, ...]:
        """Return the kinds of statistic that the method needs of each source under some parameters."""
        return tuple(cast("StatisticKind", params.get(name, name)) for name in self.needs)

    def check_count(self, count: int) -> None:
        """Refuse a number of sources (base not counted) that the method cannot blend.

        Raises:
            RecipeError: with the number expected.
        """
        low, high = self.min_sources, self.max_sources
        if count < low or (high is not None and count > high):
            wanted = f"exactly {low}" if low == high else f"at least {low}"
            beside = " beside the base" if self.base == "required" else ""
            raise RecipeError(f"method {self.name!r} blends {wanted} sources{beside}, got {count}")
