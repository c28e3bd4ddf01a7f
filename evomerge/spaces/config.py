"""The `space:` section of a search file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from evomerge.documents import StrictModel, did_you_mean
from evomerge.recipe import Group, PartConfig, TensorsConfig

Range = bool | float | str | tuple[bool | float | str, ...]
"""`[low, high]` searches a number, a list of words (or of true and false) a choice; one value fixes it."""


class GroupsConfig(StrictModel):
    """How coefficients are shared over the model."""

    layers: str | int = "whole"
    """`whole`: one group; `every`: one a layer; a number: so many groups of consecutive layers."""
    modules: tuple[Literal["attention", "mlp", "other"], ...] = ()
    """Module groups with coefficients of their own; the modules not named share theirs. Empty: no split."""
    embeddings: bool = False
    """Whether embeddings have their own coefficients (else they follow the first layer group)."""
    head: bool = False
    """Whether final norm and head have their own (else they follow the last layer group)."""
    method: bool = False
    """Whether each group chooses its own of the methods (else one is chosen for the whole model)."""

    @field_validator("layers", mode="before")
    @classmethod
    def _granularity(cls, layers: Any) -> Any:
        if layers in ("whole", "every") or (type(layers) is int and layers >= 1):
            return layers
        hint = did_you_mean(layers, ("whole", "every")) if isinstance(layers, str) else ""
        raise ValueError(f"expected `whole`, `every` or a number of groups, got {layers!r:.60}{hint}")

    @field_validator("modules")
    @classmethod
    def _no_repetition(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modules)) < len(modules):
            raise ValueError("a module group stands twice")
        return modules


class LinesRanges(StrictModel):
    """What of LiNeS is searched, for the whole model: [low, high] searches a number, one value fixes it."""

    alpha: float | Literal["auto"] | tuple[float, float] = (0.0, 1.0)
    """Share of the merged task vector that is kept in the first layer and outside of the layers; `auto`: as recipes
    have it."""
    beta: float | tuple[float, float] = (0.0, 1.5)
    """How much larger the share is in the last layer."""

    @field_validator("alpha", "beta")
    @classmethod
    def _some_range(cls, value: Any) -> Any:
        if isinstance(value, tuple) and not value[0] < value[1]:
            raise ValueError("expected a range [low, high] with low < high, or a single value")
        return value


_PARAMETER_KEYS = ("method", "groups", "parameters", "lines", "embeddings", "head", "tensors")
_ROUTE_KEYS = ("encoding", "order", "repeats", "scales", "initial_keep", "max_hops", "max_parameters")
_JOINT_KEYS = ("schedule", "stage_evaluations")
_PIECEWISE_KEYS = ("chromosomes", "chunks", "range")
_PIECEWISE: dict[str, tuple[str, ...]] = {"`kind: piecewise`": _PIECEWISE_KEYS}
_ELSEWHERE: dict[str, dict[str, tuple[str, ...]]] = {
    "parameter": {"`kind: data_flow` or `joint`": _ROUTE_KEYS, "`kind: joint`": _JOINT_KEYS, **_PIECEWISE},
    "data_flow": {"`kind: parameter` or `joint`": _PARAMETER_KEYS, "`kind: joint`": _JOINT_KEYS, **_PIECEWISE},
    "joint": _PIECEWISE,
    "piecewise": {
        "`kind: parameter` or `joint`": _PARAMETER_KEYS,
        "`kind: data_flow` or `joint`": _ROUTE_KEYS,
        "`kind: joint`": _JOINT_KEYS,
    },
}
"""Kind of space -> the keys that mean nothing there, by the kinds that have them."""


def _fault(key: str, text: str) -> ValidationError:
    """Return an error that points at a key of the section."""
    details = InitErrorDetails(type="value_error", loc=(key,), input=None, ctx={"error": ValueError(text)})
    return ValidationError.from_exception_data("SpaceConfig", [details])


class SpaceConfig(StrictModel):
    """What may vary."""

    kind: Literal["parameter", "data_flow", "joint", "piecewise"] = "parameter"
    method: str | tuple[str, ...] = "task_arithmetic"
    """A merge method; a list makes the method a dimension, and the parameters of each conditional on it."""
    groups: GroupsConfig = GroupsConfig()
    parameters: dict[str, Range] = Field(default_factory=dict)
    """Ranges or fixed values by parameter name; left out: the ranges the operator itself declares."""
    lines: LinesRanges | None = None
    """LiNeS on top of the merge; `{}` searches α and β over their usual ranges."""
    embeddings: PartConfig | None = None
    """As in a recipe, the same for all candidates: `{take: [base]}` keeps the base's embeddings."""
    head: PartConfig | None = None
    """The same for final norm and head."""
    tensors: tuple[TensorsConfig, ...] = ()
    """The same for the tensors that match: `[{match: router, from: base}]`."""
    encoding: Literal["paper", "hop_scales", "network", "mixed"] = "hop_scales"
    """How a route is written as numbers: an indicator for each slot and a scale for each pair of layers (`paper`),
    for each slot (`hop_scales`: far fewer) or from a small network (`network`); or choices (`mixed`)."""
    order: tuple[str, ...] = ()
    """Sources of the route in order, the first one (model A) giving embeddings, head, tokenizer and the ends of
    the route. Left out: all of them, the base first; of a joint space: `merged`, then all but the base."""
    repeats: int = Field(default=3, ge=1)
    """How often the row of all layers is laid out; 3 as in Akiba et al. 2025."""
    scales: tuple[float, float] | Literal["fixed"] = (0.5, 1.5)
    """Range of the factors on the hidden stream, around 1; `fixed`: all are 1."""
    initial_keep: float = Field(default=0.5, gt=0, le=0.5)
    """Share of first candidates that keep a given slot outside the first pass through model A (encodings with
    indicators, at the default `sigma`). The paper's is one half; on a small budget less is better."""
    max_hops: int | None = Field(default=None, ge=2)
    """Longest route, its forced ends included; a longer one loses the slots of smallest indicator."""
    max_parameters: float | None = Field(default=None, gt=0)
    """The same limit as a multiple of model A's layers (1.5: half as many layers again)."""
    schedule: Literal["together", "parameter_then_data_flow", "alternating"] = "together"
    """Whether a joint search varies both parts in one genome, one after the other, or in turns."""
    stage_evaluations: int = Field(default=100, ge=1)
    """Candidates of each stage of a schedule (the last stage of `parameter_then_data_flow` is open-ended)."""
    chromosomes: Literal["whole"] | tuple[Group, ...] = "whole"
    """Module groups whose weights are split and crossed on their own, beside the rest of the model."""
    chunks: int = Field(default=16, ge=1)
    """Equal stretches of each chromosome that have a mixture of their own, for searchers of numbers."""
    range: tuple[float, float] = (0.0, 1.0)
    """Range of the weight of every source but the first, which has what is left of 1."""

    @model_validator(mode="after")
    def _keys_of_this_kind(self) -> SpaceConfig:
        for kind, keys in _ELSEWHERE[self.kind].items():
            for key in keys:
                field = type(self).model_fields[key]
                # By value: a resolved search file spells all defaults out.
                if getattr(self, key) != field.get_default(call_default_factory=True):
                    raise _fault(key, f"is for {kind}, and this space is of kind {self.kind!r}; leave it out")
        return self

    @model_validator(mode="after")
    def _one_word_for_each_part(self) -> SpaceConfig:
        for key in ("embeddings", "head"):
            if getattr(self.groups, key) and getattr(self, key) is not None:
                raise _fault(key, f"stands beside `groups.{key}`, which searches it; leave one of them out")
        if self.groups.method and len(self.methods) < 2:
            raise _fault("groups", "`method: true` lets each group choose a method; give a list of them as `method`")
        return self

    @field_validator("order")
    @classmethod
    def _no_alias_twice(cls, order: tuple[str, ...]) -> tuple[str, ...]:
        if order and len(set(order)) < max(2, len(order)):
            raise ValueError("give two or more different sources; `repeats` says how often they come")
        return order

    @field_validator("scales")
    @classmethod
    def _around_one(cls, scales: tuple[float, float] | str) -> tuple[float, float] | str:
        if isinstance(scales, tuple) and not (0 < scales[0] <= 1 <= scales[1] and scales[0] < scales[1]):
            raise ValueError("expected a range [low, high] of positive factors around 1, or `fixed`")
        return scales

    @field_validator("chromosomes")
    @classmethod
    def _no_group_twice(cls, chromosomes: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(chromosomes, str) and len(set(chromosomes)) < max(1, len(chromosomes)):
            raise ValueError("give `whole`, or one or more different module groups")
        return chromosomes

    @field_validator("range")
    @classmethod
    def _some_range(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not ends[0] < ends[1]:
            raise ValueError("expected a range [low, high] with low < high")
        return ends

    @field_validator("method")
    @classmethod
    def _some_methods(cls, method: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(method, str) and not (method and len(set(method)) == len(method)):
            raise ValueError("give one method, or a list of different methods")
        return method

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order given; a list of one counts as one method."""
        return (self.method,) if isinstance(self.method, str) else self.method
