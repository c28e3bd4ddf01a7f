"""The `space:` section of a search file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from evomerge.documents import StrictModel, did_you_mean

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


class SpaceConfig(StrictModel):
    """What may vary."""

    kind: Literal["parameter", "data_flow", "joint"] = "parameter"
    method: str | tuple[str, ...] = "task_arithmetic"
    """A merge method; a list makes the method a dimension, and the parameters of each conditional on it."""
    groups: GroupsConfig = GroupsConfig()
    parameters: dict[str, Range] = Field(default_factory=dict)
    """Ranges or fixed values by parameter name; left out: the ranges the operator itself declares."""

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
