"""Candidates, outcomes and the `Searcher` interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe
from evomerge.spaces.types import Genome

State = Literal["feasible", "infeasible", "failed"]
Samples = Mapping[str, NDArray[np.float64]]
"""Per-sample scores: `task.metric` -> float64 array of shape (documents,), in document order."""


@dataclass(frozen=True)
class Candidate:
    """What to try next."""

    id: int
    """Counts from 0 in the order of asking."""
    genome: Genome
    decode: Callable[[Genome], Recipe] = field(repr=False, compare=False)
    """Gives the recipe of the genome."""
    parents: tuple[int, ...] = ()
    """Ids of the candidates it was made from, if any."""
    origin: str = ""
    """How it came about, in words, for instance `cma_es generation 3`."""
    generation: int = 0
    """Candidates that are compared with each other share it; a minibatch is drawn anew for each generation."""

    @cached_property
    def recipe(self) -> Recipe:
        """The genome's recipe, decoded when it is first looked at: scoring in memory needs none."""
        return self.decode(self.genome)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good a candidate is, as a searcher hears it."""

    state: State
    """`infeasible`: the recipe gives no working model or breaks a constraint; `failed`: it could not be
    scored."""
    objectives: tuple[float, ...] = ()
    """One value an objective, in the order of the search file, all maximised; empty unless they were
    measured."""
    violation: float = 0.0
    """Sum of the constraints' shortfalls, >= 0; 0 where no constraint was broken or nothing was measured."""
    samples: Samples = field(default_factory=dict)
    """Per-sample scores, for searchers that compete on samples."""


class Searcher(Protocol):
    """What to try next: a deterministic function of its seed and of the order of asks and tells.

    No files, no printing, no clock, no threads. Asking for n at once equals asking n times for one, so that a
    journal of single asks replays any batching.
    """

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates; fewer (or none) while it must first be told open outcomes."""
        ...

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate that was asked, once, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
        """
        ...

    @property
    def finished(self) -> str | None:
        """Why no further candidate will come (one phrase), or None."""
        ...

    def status(self) -> dict[str, float | int | str]:
        """Return a few plain figures for people, for instance generation and step size."""
        ...
