"""Merge methods: what they take, as data, and where their tensor functions are.

Importing this package loads no tensor library; `load` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from evomerge.documents import did_you_mean
from evomerge.errors import RecipeError
from evomerge.operators import (
    adapters,
    consensus,
    fused,
    interference,
    overlap,
    pairs,
    projections,
    pruned,
    scored,
    soups,
    sparsified,
    spectral,
    spherical,
    statistical,
    weighted,
)
from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter, Resolved, Scalar, Setting

if TYPE_CHECKING:
    from evomerge.operators.kernels.context import Kernel

__all__ = [
    "Invariant",
    "OperatorSpec",
    "Parameter",
    "Resolved",
    "Scalar",
    "Setting",
    "get",
    "load",
    "names",
    "specs",
]

_SPECS: dict[str, OperatorSpec] = {
    spec.name: spec
    for family in (
        weighted,
        spherical,
        soups,
        pairs,
        sparsified,
        pruned,
        overlap,
        consensus,
        fused,
        scored,
        spectral,
        interference,
        projections,
        adapters,
        statistical,
    )
    for spec in family.SPECS
}


def specs() -> tuple[OperatorSpec, ...]:
    """Return every method, simplest family first."""
    return tuple(_SPECS.values())


def names() -> tuple[str, ...]:
    """Return the names of every method, in the order of `specs`.

    Example:
        >>> names()[:3]
        ('linear', 'task_arithmetic', 'slerp')
    """
    return tuple(_SPECS)


def get(name: str) -> OperatorSpec:
    """Return the method of that name.

    Raises:
        RecipeError: when there is none, with the nearest name.

    Example:
        >>> get("slerp").parameters[0].name
        't'
    """
    try:
        return _SPECS[name]
    except KeyError:
        raise RecipeError(f"unknown merge method {name!r}{did_you_mean(name, _SPECS)}") from None


def load(spec: OperatorSpec) -> Kernel:
    """Import and return the tensor function of a method (this imports torch)."""
    module, _, function = spec.kernel.partition(":")
    return cast("Kernel", getattr(importlib.import_module(module), function))
