"""The `search:` section of a search file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from evomerge.documents import StrictModel


class SearchConfig(StrictModel):
    """Which searcher, with which seed and options."""

    searcher: str = "cma_es"
    seed: int = Field(default=0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the searcher; each searcher declares its own and refuses unknown ones."""
    minibatch: int | None = Field(default=None, ge=2)
    """So many documents a task are drawn anew for each generation, in place of the whole search split; the finalists
    are still scored on the whole validation split, which stays the same (Akiba et al. 2025, Methods)."""
    scalarize: Literal["mean", "min"] | tuple[float, ...] = "mean"
    """How single-objective searchers and `best` see several objectives: their mean, their minimum, or
    weights."""
