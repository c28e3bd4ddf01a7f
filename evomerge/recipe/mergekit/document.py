"""The mergekit document: its keys, and its parameters with their gradients and filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from evomerge.documents import StrictModel, did_you_mean

Scalar = bool | int | float | str


class ModelRef(StrictModel):
    """A model as mergekit names it: `path`, `path@revision`, `path+adapter`, or the same spelled out."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = value.split("+")
            if len(parts) > 2 or not all(parts):
                raise ValueError(f"expected MODEL or MODEL+ADAPTER, each with @REVISION or not, got {value!r:.80}")
            value = {"model": parts[0], **({"lora": parts[1]} if len(parts) == 2 else {})}
        if not isinstance(value, Mapping) or "path" in value:
            return value
        for key in value:
            if key not in ("model", "lora", "override_architecture"):
                raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), ('model', 'lora'))}")
        if value.get("override_architecture") is not None:
            raise ValueError("override_architecture is not understood; the architecture is read from the tensors")
        model, lora = _path(value.get("model")), _path(value.get("lora"))
        if model is None:
            raise ValueError("the model has no name; give `model: PATH`")
        found: dict[str, Any] = {"path": model[0], "revision": model[1]}
        if lora is not None:
            found |= {"adapter": lora[0], "adapter_revision": lora[1]}
        return found

    @property
    def text(self) -> str:
        """The model as one word of mergekit."""
        path = _joined(self.path, self.revision)
        return path if self.adapter is None else f"{path}+{_joined(self.adapter, self.adapter_revision)}"


def _path(value: Any) -> tuple[str, str | None] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        for key in value:
            if key not in ("path", "revision"):
                raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), ('path', 'revision'))}")
        if "path" not in value:
            raise ValueError("the model has no `path`")
        return str(value["path"]), value.get("revision")
    if str(value).count("@") > 1:
        raise ValueError(f"expected a path with one @REVISION at most, got {value!r:.80}")
    path, _, revision = str(value).partition("@")
    return path, revision or None


def _joined(path: str, revision: str | None) -> str:
    return path if revision is None else f"{path}@{revision}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A value for the tensors whose names contain a text."""

    filter: str | None
    """None: all tensors."""
    values: tuple[Scalar, ...]
    """One, or several: a gradient over the layers of a slice."""
    is_gradient: bool


Setting = tuple[Condition, ...]
"""The first condition that holds counts."""


def _setting(value: Any) -> Setting:
    if isinstance(value, Mapping):
        return (_condition(value),)
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        if not all(isinstance(item, Mapping) for item in value):
            raise ValueError("expected values alone, or `filter` and `value` in each")
        return tuple(_condition(item) for item in value)
    return (_value(None, value),)


def _condition(value: Mapping[Any, Any]) -> Condition:
    for key in value:
        if key not in ("filter", "value"):
            raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), ('filter', 'value'))}")
    if "value" not in value:
        raise ValueError("a filter needs a `value`")
    text = value.get("filter")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a filter is part of a tensor's name, got {text!r:.60}")
    return _value(None if text == "*" else text, value["value"])


def _value(text: str | None, value: Any) -> Condition:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for item in values:
        if not isinstance(item, (bool, int, float, str)):
            text = f"expected a number, a list of numbers, or a list of filters, got {item!r:.60}"
            raise ValueError(text)  # noqa: TRY004  pydantic reports ValueError alone
    return Condition(text, values, isinstance(value, (list, tuple)))


Settings = dict[str, Annotated[Setting, BeforeValidator(_setting)]]
"""Parameters by name."""


class ModelInput(StrictModel):
    """A whole model and its parameters."""

    model: ModelRef
    parameters: Settings | None = None


class SliceInput(StrictModel):
    """Layers of a model and their parameters."""

    model: ModelRef
    layer_range: tuple[int, int]
    """First layer, and first one after."""
    parameters: Settings | None = None

    @model_validator(mode="after")
    def _some_layers(self) -> SliceInput:
        first, end = self.layer_range
        if not 0 <= first < end:
            raise ValueError(f"layer_range is [first, end) with 0 <= first < end, got [{first}, {end}]")
        return self


class Slice(StrictModel):
    """Output layers that are made of one stretch of layers of each source."""

    sources: tuple[SliceInput, ...] = Field(min_length=1)
    merge_method: str | None = None
    """Not in mergekit, which ignores it: a method for these layers."""
    base_model: ModelRef | None = None
    residual_weight: float | None = None
    """Without effect in mergekit."""
    parameters: Settings | None = None


class Module(StrictModel):
    """A module of the model: the language model is the only one that is understood."""

    slices: tuple[Slice, ...] | None = None
    models: tuple[ModelInput, ...] | None = None
    parameters: Settings | None = None


class TokenRule(StrictModel):
    """Where a token's embedding comes from."""

    source: Any = None
    force: bool = False


class Tokenizer(StrictModel):
    """Where the tokenizer comes from."""

    source: Literal["union", "base"] | ModelRef = "union"
    tokens: dict[str, TokenRule] | None = None
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


class Config(StrictModel):
    """A mergekit file."""

    merge_method: str
    base_model: ModelRef | None = None
    models: tuple[ModelInput, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    modules: dict[str, Module] | None = None
    parameters: Settings | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Literal["union", "base"] | ModelRef | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> Config:
        given = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of `models`, `slices` and `modules`, got {' and '.join(given) or 'none'}"
            )
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give one of `tokenizer` and `tokenizer_source`")
        return self


def is_mergekit(data: Any) -> bool:
    """Tell whether a document is a mergekit file rather than a recipe."""
    return isinstance(data, Mapping) and "merge_method" in data and "recipe" not in data
