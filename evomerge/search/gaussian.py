"""One incarnation of CMA-ES on the unit cube: `cma` (pycma) behind a narrow, quiet, isolated face.

pycma is used for sampling and for the update alone. Its `stop()` is never called, and so neither its
termination rules (which a flat or quantised score triggers after one generation) nor its signals file have
any effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces.types import Dimension

Vector = NDArray[np.float64]

MAX_STEP = 1.0 / 3.0
"""Largest standard deviation of a coordinate in the unit cube; beyond it sampling is all but uniform."""

DISCRETE_STEP = 0.2
"""Smallest standard deviation along an int or choice dimension, in its steps (pycma's integer handling)."""


def min_step(dimension: Dimension) -> float:
    """Return the smallest standard deviation along a dimension, as a share of its range; 0: any."""
    if dimension.kind == "choice":
        return DISCRETE_STEP / len(dimension.choices)
    if dimension.kind == "int":
        return DISCRETE_STEP / max(1.0, dimension.high - dimension.low)
    return 0.0


class GaussianSearch:
    """A Gaussian over [0, 1]^n that is sampled point by point and moved by ranked samples.

    Args:
        start: the first mean, shape (n,), in [0, 1].
        sigma: the first standard deviation, in (0, `MAX_STEP`].
        population: samples an update, at least 4.
        diagonal: whether the covariance stays diagonal (sep-CMA-ES).
        min_steps: smallest standard deviation of each coordinate, shape (n,); 0 where there is none.
        rng: where every random number comes from.
    """

    def __init__(
        self,
        start: Vector,
        *,
        sigma: float,
        population: int,
        diagonal: bool,
        min_steps: Vector,
        rng: np.random.Generator,
    ) -> None:
        self.num_dimensions = len(start)
        self.population = population
        # pycma refuses one dimension: a second one pads it, which scores never depend on.
        padding = max(0, 2 - len(start))
        options = {
            "popsize": population,
            "bounds": [0.0, 1.0],
            "minstd": np.append(min_steps, np.zeros(padding)),
            "maxstd": MAX_STEP,
            "CMA_diagonal": diagonal,
            # Neither mirrored samples nor two-point step-size adaptation: both need a whole generation.
            "CMA_mirrors": 0,
            # Its change of coordinates does not know the bounds; we stop at an ill condition instead.
            "conditioncov_alleviate": None,
            "seed": np.nan,
            "randn": lambda *shape: rng.standard_normal(shape),
            "verbose": -10,
            "verb_log": 0,
        }
        # Construction adds a process-wide warnings filter, and importing warns where matplotlib is missing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cma.evolution_strategy import CMAEvolutionStrategy
            from cma.sigma_adaptation import CMAAdaptSigmaCSA

            options["AdaptSigma"] = CMAAdaptSigmaCSA
            mean = np.append(start, np.full(padding, 0.5))
            self._strategy: Any = CMAEvolutionStrategy(mean, sigma, options)

    def sample(self) -> Vector:
        """Return a new point, shape (max(2, n),), in [0, 1]; only the first n coordinates mean anything."""
        return np.asarray(self._strategy.ask(1)[0], dtype=np.float64)

    def update(self, points: Sequence[Vector]) -> None:
        """Move the distribution by `population` points that `sample` gave, best first.

        Only the ranking enters the update (Hansen 2016, section 5: invariance to monotone transformations).
        """
        self._strategy.tell(list(points), [float(rank) for rank in range(len(points))])

    def widen(self, factor: float) -> None:
        """Multiply the step size by a factor > 1, as far as no coordinate's passes `MAX_STEP`."""
        room = MAX_STEP / float(np.max(self._strategy.stds))
        self._strategy.sigma *= max(1.0, min(factor, room))

    @property
    def steps(self) -> Vector:
        """Standard deviation of each coordinate, shape (n,)."""
        return np.asarray(self._strategy.stds, dtype=np.float64)[: self.num_dimensions]

    @property
    def condition(self) -> float:
        """Condition number of the covariance: its largest over its smallest eigenvalue."""
        return float(self._strategy.condition_number)
