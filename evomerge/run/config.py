"""The search file as a whole."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from evomerge.cluster.config import ExecutorConfig
from evomerge.documents import StrictModel
from evomerge.fitness.config import EngineConfig, FitnessConfig
from evomerge.recipe import SourceConfig, TokenizerConfig
from evomerge.search.config import SearchConfig
from evomerge.spaces.config import SpaceConfig


class BudgetConfig(StrictModel):
    """When a search ends: at whichever limit comes first."""

    evaluations: int | None = Field(default=100, ge=1)
    """Candidates scored on the search split; a reused score of an equal recipe costs nothing."""
    hours: float | None = Field(default=None, gt=0)
    """Wall-clock hours of running coordinators, added up over resumes."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours that workers hold GPUs, times their GPUs; starting and idle workers hold them too."""
    cost: float | None = Field(default=None, gt=0)
    """GPU-hours times `cost_per_gpu_hour`, in its currency."""
    cost_per_gpu_hour: float | None = Field(default=None, gt=0)
    """What a GPU costs an hour; no limit in itself."""
    target: float | None = None
    """Stop as soon as a feasible candidate's scalarised objective reaches this."""
    plateau: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in which neither the best scalarised objective nor the hypervolume grew."""


class ReferencesConfig(StrictModel):
    """What candidates are compared with, scored beside the budget."""

    parents: bool = True
    """Each source by itself."""
    uniform: bool = True
    """The plain average of the sources that are not the base."""
    coefficients: int = Field(default=0, ge=0)
    """Points of a sweep of task arithmetic with one coefficient for all sources, from 0.1 to 1 in equal steps."""


class RunConfig(StrictModel):
    """One search: everything that determines its result."""

    name: str = "search"
    sources: dict[str, SourceConfig] = Field(min_length=2)
    base: str | None = None
    tokenizer: TokenizerConfig | None = None
    space: SpaceConfig = SpaceConfig()
    fitness: FitnessConfig
    search: SearchConfig = SearchConfig()
    engine: EngineConfig = EngineConfig()
    executor: ExecutorConfig = ExecutorConfig()
    budget: BudgetConfig = BudgetConfig()
    references: ReferencesConfig = ReferencesConfig()
    finalists: int = Field(default=8, ge=0)
    """So many of the best candidates are scored on the validation split at the end, beside the whole front."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a name is letters, digits, '.', '_' and '-' alone")
        return name

    @model_validator(mode="after")
    def _gpu_hours_can_pass(self) -> RunConfig:
        for key in ("gpu_hours", "cost"):
            if getattr(self.budget, key) is not None and self.executor.gpus_per_worker == 0:
                raise ValueError(
                    f"budget.{key} never ends this search: executor.gpus_per_worker is 0; give the workers GPUs"
                )
        if self.budget.cost is not None and self.budget.cost_per_gpu_hour is None:
            raise ValueError("budget.cost is unknown without a price: set budget.cost_per_gpu_hour too")
        return self
