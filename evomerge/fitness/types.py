"""Evaluations, and the `Scorer` and `Engine` interfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Split = Literal["search", "validation", "test"]
SPLITS: tuple[Split, ...] = ("search", "validation", "test")


@dataclass(frozen=True, slots=True)
class Minibatch:
    """A random part of a split's documents."""

    documents: int
    """Documents a task, >= 2; a task with fewer gives all it has."""
    draw: int
    """Seed: equal draws choose equal documents, whatever their order and number."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What scoring one recipe on one split gave."""

    split: Split
    samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Per-sample scores: `task.metric` -> float64 array of shape (documents,); the same documents in the
    same order for every recipe."""
    documents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Task -> hash of each document, in the order of the samples."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the model as a whole that need no documents, for instance `parameters`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds a stage: `materialise`, `gate`, `score`, and `prepare` where tasks were first built for this
    split."""
    infeasible: str | None = None
    """Why the recipe gives no working model; the samples are then empty."""


class Scorer(Protocol):
    """How good a recipe is. One scorer lives in one worker and is used by one thread."""

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:
        """Build the recipe's model and score it on a split, or on a minibatch of it.

        Raises:
            EvaluationError: for a failure that is not the recipe's and that another try may not meet.
            EvomergeError: for anything that trying again cannot mend.
        """
        ...

    def close(self) -> None:
        """Free what the scorer holds."""
        ...


class Engine(Protocol):
    """A resident model whose weights are swapped in place."""

    def load(self, recipe: Recipe) -> None:
        """Materialise a recipe into the resident model.

        After an error the model's weights are undefined until the next load succeeds.

        Raises:
            InfeasibleError: when the merged weights are not finite.
        """
        ...

    @property
    def lm(self) -> LM:
        """The loaded model as an lm-eval `LM`; the same object for the engine's whole life."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens of the model's tokenizer, special tokens not added."""
        ...

    def facts(self) -> Mapping[str, float]:
        """Return metrics of the loaded model as a whole, as it would be exported.

        `parameters`: the number of trainable values, tied ones counted once, a repeated layer as often as it is run;
        `hops`: the number of layers that are run.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
