"""CatCMA with margin: floats, ints and choices together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from evomerge import seeds
from evomerge.documents import StrictModel
from evomerge.search.cma_es import PLATEAU_FACTOR
from evomerge.search.gaussian import MAX_STEP
from evomerge.search.genomes import genome_from_unit, unit_from_genome
from evomerge.search.ledger import Ledger
from evomerge.search.mixed_gaussian import MixedGaussian, MixedSample
from evomerge.search.options import parse_options
from evomerge.search.ranking import Standing, standing
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Space


class CatCmaOptions(StrictModel):
    """Options of CatCMA with margin. Lengths are shares of each dimension's range."""

    population: int | None = Field(default=None, ge=4)
    """Candidates a generation; left out: 4 + floor(3 ln n) for n dimensions (Hansen 2016, equation 48)."""
    sigma: float = Field(default=0.17, gt=0, le=MAX_STEP)
    """First standard deviation of numbers."""
    certainty: float | None = Field(default=None, gt=0, lt=1)
    """First probability of each choice at which the space starts; left out: all choices are equally likely.
    For routes, 0.9 begins near model A."""


class CatCma:
    """CatCMA with margin: a Gaussian over numbers and categorical distributions over choices, generational.

    Hamano et al., "CatCMA with Margin for Single- and Multi-Objective Mixed-Variable Black-Box Optimization",
    2025 <https://arxiv.org/abs/2504.07884>, built on `cmaes`. Made for spaces with many choices, such as routes of
    `encoding: mixed`; its covariance is full, so that it is for a few hundred numbers at most.

    Deviations from the paper and from `cmaes`:

    - *Inactive dimensions.* What a candidate does not express carries no signal (the interaction of binary and
      continuous variables on which CatCMA fails: ICatCMA, <https://arxiv.org/abs/2504.00491>). An inactive float
      does not move its mean, though step size and covariance see the neutral sample that it is: put at the mean
      instead, it would shrink both. An inactive choice stands at its distribution, whose gradient is zero.
    - *Ranking*, *plateaus*, *stopping.* As `CmaEs` does: by standing alone; a generation of equals changes nothing
      but the step size; nothing about scores ends a search. The margin keeps every choice possible, so there is
      no convergence: the budget ends it.
    - *Bounds.* The step size is held below a third of the range.

    The trajectory depends on outcomes and not on the order of telling within a generation.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",
    ) -> None:
        self._options = parse_options(CatCmaOptions, options)
        self._space = space
        self._scalarize = scalarize
        self._ledger = Ledger(space)
        num_dimensions = len(space.dimensions)
        self._distribution = MixedGaussian(
            space.dimensions,
            unit_from_genome(space, space.start),
            sigma=self._options.sigma,
            population=self._options.population or 4 + math.floor(3 * math.log(max(2, num_dimensions))),
            certainty=self._options.certainty,
            seed=seeds.derive(seed, "cat_cma") % 2**32,
        )
        self._samples: dict[int, MixedSample] = {}
        self._results: list[tuple[Standing, int, Candidate, MixedSample]] = []
        self._generation = 0
        self._num_sampled = 0

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates: none while the generation is full."""
        candidates: list[Candidate] = []
        while len(candidates) < n and self._num_sampled < self._distribution.population:
            sample = self._distribution.sample()
            genome = genome_from_unit(self._space, sample.unit)
            candidate = self._ledger.issue(
                genome, origin=f"cat_cma generation {self._generation}", generation=self._generation
            )
            self._samples[candidate.id] = sample
            self._num_sampled += 1
            candidates.append(candidate)
        return candidates

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the scalarisation does not fit the objectives.
        """
        rank = standing(outcome, self._scalarize)
        self._ledger.close(candidate)
        self._results.append((rank, candidate.id, candidate, self._samples.pop(candidate.id)))
        if len(self._results) == self._distribution.population:
            self._update()

    @property
    def finished(self) -> str | None:
        """None: every choice stays possible."""
        return None

    def status(self) -> dict[str, float | int | str]:
        """Return where the distribution stands.

        `step_size` is the largest standard deviation, `certainty` the mean over choices of the largest probability.
        """
        status: dict[str, float | int | str] = {
            "generation": self._generation,
            "population": self._distribution.population,
        }
        if self._distribution.steps.size:
            status["step_size"] = float(self._distribution.steps.max())
        if self._distribution.shares.size:
            status["certainty"] = float(self._distribution.shares.mean())
        return status

    def _update(self) -> None:
        ranked = sorted(self._results, key=lambda result: result[:2])
        if ranked[0][0] < ranked[-1][0]:
            self._distribution.update(
                [sample for *_, sample in ranked],
                [np.array([value is not None for value in candidate.genome]) for _, _, candidate, _ in ranked],
            )
        else:
            self._distribution.widen(PLATEAU_FACTOR)
        self._results.clear()
        self._generation += 1
        self._num_sampled = 0
