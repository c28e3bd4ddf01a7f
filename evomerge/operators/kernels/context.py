"""What a kernel knows beside its tensors, and the type of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from evomerge.operators.metadata import Resolved

Tensors: TypeAlias = tuple[Tensor, ...]


def _made(name: str, make: Callable[[], Tensors]) -> Tensors:  # noqa: ARG001  nothing is kept
    return make()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Which parameter is being blended, from which sources, and under which seed."""

    name: str
    """The parameter's name in the merged model; random masks are keyed by it, and errors name it."""
    source_ids: tuple[str, ...]
    """Content hashes of the sources, aligned with the tensors."""
    seed: int = 0
    """The recipe's seed."""
    dtype: torch.dtype = torch.float32
    """What the result is rounded to, once."""
    threshold: Callable[[int, float], float] | None = None
    """For `scope: global`: (index of the source, density) to the magnitude, over the whole model's task
    vector, from which an entry is kept. None: the caller makes no global pass."""
    kept: Callable[[str, Callable[[], Tensors]], Tensors] = _made
    """(what it is, how it is made) to tensors that depend on this parameter in these sources and base alone, not on
    `params`, such as a decomposition: a caller may keep them from one candidate to the next. Not to be changed."""


Kernel: TypeAlias = Callable[[Sequence[Tensor], Tensor | None, Mapping[str, Resolved], Context], Tensor]
"""`kernel(tensors, base, params, context)`.

tensors: float32, bfloat16 or float16, one shape, one a source (the base not counted); base: the same, None where the
method ignores it; params: the result of `OperatorSpec.complete`. Returns that shape in `Context.dtype`. The arithmetic
is float32 or better, whatever the inputs are stored as, with one rounding at the end. No input is changed or aliased.
"""
