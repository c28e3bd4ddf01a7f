"""NSGA-II: the nondominated sorting genetic algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evomerge.documents import StrictModel
from evomerge.search.options import parse_options
from evomerge.search.optuna_search import OptunaSearch

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.samplers.nsgaii import BaseCrossover

GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler keeps a trial's generation."""


class NsgaIIOptions(StrictModel):
    """Options of NSGA-II."""

    population: int = Field(default=20, ge=2)
    """Candidates a generation, and parents of the next one."""
    crossover: Literal["uniform", "sbx", "blx_alpha"] = "uniform"
    """How two parents' numbers are mixed: each taken from one of them, or drawn near both (simulated binary), or
    drawn between and around them (blend alpha). Choices are always taken from one of them."""
    crossover_probability: float = Field(default=0.9, ge=0, le=1)
    """Else a child is a copy of one parent, before mutation."""
    mutation_probability: float | None = Field(default=None, ge=0, le=1)
    """Of each gene; left out: 1 / number of dimensions. A mutated gene is drawn anew from its whole range."""


class NsgaII(OptunaSearch):
    """NSGA-II, asynchronous, through Optuna's sampler.

    Deb, Pratap, Agarwal and Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE
    Transactions on Evolutionary Computation 6(2), 2002.

    Deviations from the paper: a generation is over when `population` results of it are in, and what is told later
    still competes to be a parent of the next; parents win a tournament by (constrained) dominance alone, without
    the crowding distance; a mutated gene is uniform in its range. What other searchers found joins the generation
    that is being filled: heard before the first candidate, the best `population` of it are the first parents, and
    no random generation is spent.
    """

    name = "nsga_ii"
    samples_inactive = True

    def _make_sampler(self, options: Mapping[str, Any] | None, seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        parsed = parse_options(NsgaIIOptions, options)
        self._generation = 0
        self._nsga_ii = NSGAIISampler(
            population_size=parsed.population,
            crossover=_crossover(parsed.crossover),
            crossover_prob=parsed.crossover_probability,
            mutation_prob=parsed.mutation_probability,
            seed=seed,
        )
        return self._nsga_ii

    def status(self) -> dict[str, float | int | str]:
        """Return the generation, and how many candidates were asked, are open, and were heard of."""
        return {"generation": self._generation, **super().status()}

    def _origin(self, study: Study, trial: Trial) -> dict[str, Any]:
        # The sampler marks a trial only when it has suggested something for it; this does in any case.
        generation = self._nsga_ii.get_trial_generation(study, study.get_trials(deepcopy=False)[trial.number])
        self._generation = max(self._generation, generation)
        return {"origin": f"{self.name} generation {generation}", "generation": generation}

    def _marks(self) -> dict[str, Any]:
        return {GENERATION: self._generation}


def _crossover(name: str) -> BaseCrossover | None:
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers.nsgaii import BLXAlphaCrossover, SBXCrossover

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return {"sbx": SBXCrossover, "blx_alpha": BLXAlphaCrossover}[name]() if name != "uniform" else None
