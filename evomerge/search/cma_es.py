"""CMA-ES: the covariance matrix adaptation evolution strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evomerge import seeds
from evomerge.documents import StrictModel
from evomerge.search.gaussian import MAX_STEP, GaussianSearch, Vector, min_step
from evomerge.search.genomes import genome_from_unit, unit_from_genome
from evomerge.search.ledger import Ledger
from evomerge.search.options import parse_options
from evomerge.search.ranking import NOTHING_YET, Standing, standing
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Space

SEPARABLE_ABOVE = 32
"""`diagonal: auto` keeps the covariance diagonal above this dimension: all of it takes of order n^2
evaluations to learn, the diagonal of order n (Ros and Hansen 2008), and a merge search has hundreds to a few
thousands. On rotated ellipsoids of condition 100 the diagonal is ahead up to 500 evaluations with 24
dimensions, up to 2000 with 40."""
MAX_CONDITION = 1e14
"""Beyond it eigenvalues are rounding noise (pycma's `tolconditioncov`)."""
MAX_LAG = 1
"""Asynchronous results that lag more generations than this are dropped: with older ones the search
diverges."""
PLATEAU_FACTOR = 1.5
"""Factor of the step size after a generation of equals (pycma's `manage_plateaus`)."""


class CmaEsOptions(StrictModel):
    """Options of CMA-ES. Lengths are shares of each dimension's range."""

    population: int | None = Field(default=None, ge=4)
    """Candidates a generation; left out: 4 + floor(3 ln n) for n dimensions (Hansen 2016, equation 48)."""
    sigma: float = Field(default=0.17, gt=0, le=MAX_STEP)
    """First standard deviation; about a sixth of the range, so that three of them reach from the middle to
    the ends."""
    start: Literal["default", "random"] = "default"
    """Where the first mean lies: at the space's defaults, or at a uniform random point. Restarts are always
    random."""
    restarts: int = Field(default=0, ge=0)
    """How often to begin anew, with a larger population, after convergence or stagnation (IPOP)."""
    increase: int = Field(default=2, ge=1)
    """Factor of the population at each restart."""
    diagonal: Literal["auto"] | bool = "auto"
    """Whether the covariance stays diagonal (sep-CMA-ES); `auto`: above 32 dimensions."""
    asynchronous: bool = False
    """Update whenever `population` results are in, from whichever generation, instead of waiting for a whole
    one."""
    tolerance: float = Field(default=1e-4, ge=0, lt=MAX_STEP)
    """Converged when every continuous coordinate's standard deviation is below this: models that are closer
    than a ten-thousandth of the range score alike."""
    stagnation: int | None = Field(default=None, ge=1)
    """Generations without a better candidate before a restart; left out: 10 + ceil(30 n / population) (Auger
    and Hansen 2005). It only ever triggers a restart; it never ends a search."""


@dataclass(frozen=True, slots=True)
class _Sample:
    point: Vector
    restart: int
    generation: int


class CmaEs:
    """CMA-ES with restarts, generational or asynchronous, on the unit cube of the space.

    Hansen, "The CMA Evolution Strategy: A Tutorial", 2016 <https://arxiv.org/abs/1604.00772>; restarts: Auger
    and Hansen, "A Restart CMA Evolution Strategy With Increasing Population Size", CEC 2005; diagonal: Ros
    and Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity", PPSN 2008. Built
    on `cma`.

    Deviations from the papers and from pycma's defaults:

    - *Stopping.* Flat and quantised scores never end the search: no rule looks at differences of scores. A
      search is over (or restarts, while `restarts` are left) when every continuous coordinate's standard
      deviation is below `tolerance`, or when the covariance's condition number exceeds 1e14. While restarts
      are left, `stagnation` generations without a better candidate also lead to one.
    - *Plateaus.* A generation in which all are equal ranks nothing: it leaves the distribution as it is,
      but for the step size, which grows by half (up to a third of the range). So flat scores never look
      like convergence, and the search walks off a plateau.
    - *Ranking.* Feasible candidates rank by their scalarised objectives; behind all of them, those that broke
      constraints, by violation; behind these, without order, those that could not be measured. Ties: lower id
      first.
    - *Discrete dimensions.* A choice takes equal shares of [0, 1]; along ints and choices the standard
      deviation does not fall below a fifth of a step. An inactive conditional dimension is sampled all the
      same, and not expressed.
    - *Asynchronous.* At most `population` candidates are in flight; an update takes place when `population`
      results are in; a result that lags two generations or more is dropped and its slot refilled.

    The generational trajectory depends on outcomes and not on the order of telling; the asynchronous one is a
    function of the order of asks and tells.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",
    ) -> None:
        self._options = parse_options(CmaEsOptions, options)
        self._space = space
        self._seed = seed
        self._scalarize = scalarize
        self._ledger = Ledger(space)
        self._min_steps = np.array([min_step(dimension) for dimension in space.dimensions])
        self._samples: dict[int, _Sample] = {}
        self._results: list[tuple[Standing, int, Vector]] = []
        self._generation = 0
        self._num_dropped = 0
        self._best = NOTHING_YET
        self._finished: str | None = None
        self._begin(restart=0)

    def ask(self, n: int) -> list[Candidate]:
        """Return up to `n` new candidates: none while the generation (asynchronous: the flight) is full."""
        candidates: list[Candidate] = []
        while len(candidates) < n and self._has_room():
            candidates.append(self._draw())
        return candidates

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
            ConfigError: when the scalarisation does not fit the objectives.
        """
        rank = standing(outcome, self._scalarize)
        self._ledger.close(candidate)
        sample = self._samples.pop(candidate.id)
        if self._finished is not None:
            return
        if sample.restart != self._restart or self._generation - sample.generation > MAX_LAG:
            self._num_dropped += 1
            return
        self._results.append((rank, candidate.id, sample.point))
        if len(self._results) == self._gaussian.population:
            self._update()

    @property
    def finished(self) -> str | None:
        """Why no further candidate will come, or None."""
        return self._finished

    def status(self) -> dict[str, float | int | str]:
        """Return where the distribution stands; the step size is the largest standard deviation."""
        return {
            "generation": self._generation,
            "restart": self._restart,
            "population": self._gaussian.population,
            "step_size": float(self._gaussian.steps.max()),
            "condition": self._gaussian.condition,
            "dropped": self._num_dropped,
        }

    def _has_room(self) -> bool:
        if self._finished is not None:
            return False
        if self._options.asynchronous:
            return self._ledger.num_open < self._gaussian.population
        return self._num_sampled < self._gaussian.population

    def _draw(self) -> Candidate:
        point = self._gaussian.sample()
        genome = genome_from_unit(self._space, point[: self._gaussian.num_dimensions])
        candidate = self._ledger.issue(
            genome, origin=f"cma_es generation {self._generation}", generation=self._generation
        )
        self._samples[candidate.id] = _Sample(point, self._restart, self._generation)
        self._num_sampled += 1
        return candidate

    def _update(self) -> None:
        ranked = sorted(self._results, key=lambda result: result[:2])
        best = ranked[0][0]
        if best < ranked[-1][0]:
            self._gaussian.update([point for _, _, point in ranked])
        else:
            self._gaussian.widen(PLATEAU_FACTOR)
        self._results.clear()
        self._generation += 1
        self._num_sampled = 0
        if best < self._best:
            self._best = best
            self._since_better = 0
        else:
            self._since_better += 1
        self._check()

    def _check(self) -> None:
        """Restart or finish where a stopping rule holds."""
        reason = self._convergence()
        can_restart = self._restart < self._options.restarts
        if can_restart and (reason is not None or self._since_better >= self._patience()):
            self._begin(restart=self._restart + 1)
        else:
            self._finished = reason

    def _convergence(self) -> str | None:
        continuous = self._gaussian.steps[self._min_steps == 0]
        if continuous.size and continuous.max() < self._options.tolerance:
            return f"converged: every standard deviation is below {self._options.tolerance:g} of its range"
        if self._gaussian.condition > MAX_CONDITION:
            return f"converged: the covariance's condition number exceeds {MAX_CONDITION:g}"
        return None

    def _patience(self) -> int:
        if self._options.stagnation is not None:
            return self._options.stagnation
        return 10 + math.ceil(30 * self._gaussian.num_dimensions / self._gaussian.population)

    def _begin(self, *, restart: int) -> None:
        num_dimensions = len(self._space.dimensions)
        population = self._options.population or 4 + math.floor(3 * math.log(max(2, num_dimensions)))
        diagonal = self._options.diagonal
        self._gaussian = GaussianSearch(
            self._start(restart),
            sigma=self._options.sigma,
            population=population * self._options.increase**restart,
            diagonal=num_dimensions > SEPARABLE_ABOVE if diagonal == "auto" else diagonal,
            min_steps=self._min_steps,
            rng=seeds.generator(self._seed, "cma_es", restart),
        )
        self._restart = restart
        self._num_sampled = 0
        self._best = NOTHING_YET
        self._since_better = 0

    def _start(self, restart: int) -> Vector:
        if restart == 0 and self._options.start == "default":
            return unit_from_genome(self._space, self._space.start)
        return seeds.generator(self._seed, "cma_es start", restart).random(len(self._space.dimensions))
