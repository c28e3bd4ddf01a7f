"""What a kernel knows beside its tensors, and the type of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from evomerge.operators.kernels.low_rank import LowRank
from evomerge.operators.metadata import Resolved, StatisticKind

Tensors: TypeAlias = tuple[Tensor, ...]


def _made(name: str, make: Callable[[], Tensors]) -> Tensors:  # noqa: ARG001  nothing is kept
    return make()


def _unknown(index: int) -> LowRank | None:  # noqa: ARG001  a dense task vector
    return None


def _empty(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(length, dtype=dtype, device=device)


Empty: TypeAlias = Callable[[int, torch.dtype, torch.device], Tensor]
"""(length, dtype, device) to an uninitialised vector."""
Kept: TypeAlias = Callable[[str, Callable[[], Tensors]], Tensors]
Arguments: TypeAlias = "tuple[Sequence[Tensor], Tensor | None, Context]"
"""(tensors, base, context) that a kernel gets of one parameter."""
Model: TypeAlias = Callable[[], Iterator[Arguments]]
"""Starts a pass over a model: the same parameters in the same order every time."""
OfModel: TypeAlias = Callable[[str, Callable[[Model], Tensors]], Tensors]
"""(what it is, how it is made from passes over a model) to what it is, made once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """What was measured of one source beforehand, for one parameter."""

    tensor: Tensor
    """float32: of the parameter's shape; of kind `gram` of shape (inputs, inputs)."""
    mean: float = 1.0
    """Over all entries of the whole model, > 0, as the next two are; none of them is given for kind `gram`."""
    median: float = 1.0
    """Of the positive entries of the whole model."""
    norm: float = 1.0
    """2-norm of the whole model's."""


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
    empty: Empty = _empty
    """Gives the vector that a result is written into."""
    finite: Callable[[], None] | None = None
    """Is called by a kernel that has seen, while it wrote its result, that every element of it is finite."""
    is_vocabulary: bool = False
    """Whether the parameter has a row a token: an embedding, or the head."""
    inputs_first: bool = False
    """Whether it is stored as (inputs, outputs), as GPT-2's `Conv1D` is."""
    low_rank: Callable[[int], LowRank | None] = _unknown
    """Index of the source to the factors of its task vector; None: they are not known, or it has none."""
    threshold: Callable[[int, float], float] | None = None
    """For `scope: global`: (index of the source, density) to the magnitude, over the whole model's task
    vector, from which an entry is kept; of a method that needs an importance, the magnitude times its square root.
    None: the caller makes no global pass."""
    of_model: OfModel | None = None
    """For `scope: global`: what depends on the whole model in these sources and base, and on nothing that its name does
    not say. The model has all parameters but buffers, tied ones once. None: the caller makes no global pass."""
    statistic: Callable[[int, StatisticKind], Statistic | None] | None = None
    """(index of the source, kind) to what was measured of it for this parameter; None: for this parameter, nothing.
    Given for the kinds that the method needs."""
    kept: Kept = _made
    """(what it is, how it is made) to tensors that depend on this parameter in these sources and base alone, not on
    `params`, such as a decomposition: a caller may keep them from one candidate to the next. Not to be changed."""
    filed: Kept = _made
    """As `kept`, for what no parameter of a continuous range changes at all: a caller may keep it for good."""


def alone(tensors: Sequence[Tensor], base: Tensor | None, context: Context) -> OfModel:
    """Return `Context.of_model` of a model that has this parameter and no other; nothing is kept."""
    return lambda what, make: make(lambda: iter([(tensors, base, context)]))  # noqa: ARG005


Kernel: TypeAlias = Callable[[Sequence[Tensor], Tensor | None, Mapping[str, Resolved], Context], Tensor]
"""`kernel(tensors, base, params, context)`.

tensors: float32, bfloat16 or float16, one shape, one a source (the base not counted); base: the same, None where the
method ignores it; params: the result of `OperatorSpec.complete`. Returns that shape in `Context.dtype`. The arithmetic
is float32 or better, whatever the inputs are stored as, with one rounding at the end. No input is changed or aliased.
"""
