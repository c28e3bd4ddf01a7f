"""One incarnation of CatCMA with margin on the unit cube: `cmaes` behind a narrow, quiet, isolated face.

`cmaes` is used for sampling and for the update alone; `should_stop` is never called.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.search.gaussian import MAX_STEP, Vector
from evomerge.spaces.types import Dimension

MOST_LEVELS = 64
"""An int with more values than this is searched as a continuous number and rounded."""


@dataclass(frozen=True, slots=True)
class MixedSample:
    """A point of the mixed distribution."""

    unit: Vector
    """Shape (n,), in [0, 1]: the point as the searchers of the unit cube write it."""
    solution: Any
    """The same as `cmaes` has it."""


class MixedGaussian:
    """A Gaussian over floats and ints beside independent categorical distributions over choices.

    Args:
        dimensions: the n dimensions of the space.
        start: where the search starts, shape (n,), in [0, 1].
        sigma: the first standard deviation of floats and ints, in (0, `MAX_STEP`].
        population: samples an update, at least 4.
        certainty: first probability of each choice at the start; None: all choices are equally likely.
        seed: of every random number, at least 0 and below 2^32.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        start: Vector,
        *,
        sigma: float,
        population: int,
        certainty: float | None,
        seed: int,
    ) -> None:
        self.population = population
        self._dimensions = tuple(dimensions)
        kinds = [_kind(dimension) for dimension in dimensions]
        self._x = np.array([index for index, kind in enumerate(kinds) if kind == "x"], dtype=int)
        self._z = np.array([index for index, kind in enumerate(kinds) if kind == "z"], dtype=int)
        self._c = np.array([index for index, kind in enumerate(kinds) if kind == "c"], dtype=int)
        gaussian = np.concatenate([self._x, self._z])
        num_numbers = len(gaussian)
        # Importing warns where SciPy is missing or half installed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cmaes import CatCMAwM

        self._make = CatCMAwM.Solution
        self._strategy: Any = CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._x) if len(self._x) else None,
            z_space=[_levels(self._dimensions[index]) for index in self._z] if len(self._z) else None,
            c_space=[len(self._dimensions[index].choices) for index in self._c] if len(self._c) else None,
            population_size=population,
            mean=start[gaussian].copy() if num_numbers else None,
            sigma=sigma,
            # Its own guess is the distance to the nearer bound, which is nothing for a start at a bound.
            cov=np.eye(num_numbers) if num_numbers else None,
            cat_param=self._first_shares(start, certainty) if len(self._c) else None,
            seed=seed,
        )

    def sample(self) -> MixedSample:
        """Return a new point."""
        solution = self._strategy.ask()
        unit = np.empty(len(self._dimensions))
        if len(self._x):
            unit[self._x] = solution.x
        if len(self._z):
            unit[self._z] = solution.z
        for row, index in enumerate(self._c):
            unit[index] = (int(np.argmax(solution.c[row])) + 0.5) / len(self._dimensions[index].choices)
        return MixedSample(unit, solution)

    def update(self, samples: Sequence[MixedSample], active: Sequence[NDArray[np.bool_]]) -> None:
        """Move the distribution by `population` samples, best first.

        Only the ranking enters the update.

        Args:
            samples: as `sample` gave them.
            active: of each sample, which dimensions were expressed, shape (n,).
        """
        strategy = self._strategy
        before = strategy._mean[: len(self._x)].copy() if len(self._x) else None  # noqa: SLF001
        told = [
            (self._silenced(sample, expressed), float(rank))
            for rank, (sample, expressed) in enumerate(zip(samples, active, strict=True))
        ]
        expressed_of = {id(solution): expressed for (solution, _), expressed in zip(told, active, strict=True)}
        with np.errstate(all="ignore"):  # its chi-square quantiles pass through infinity
            strategy.tell(told)
        if before is not None:
            # `tell` has sorted the list: the first half, by weight, moved the mean.
            for (solution, _), weight in zip(told, strategy._weights[: self.population // 2], strict=False):  # noqa: SLF001
                idle = ~expressed_of[id(solution)][self._x]
                move = solution._v_raw[: len(self._x)] - before  # noqa: SLF001
                strategy._mean[: len(self._x)] -= np.where(idle, weight * move, 0.0)  # noqa: SLF001
        self._limit()

    def widen(self, factor: float) -> None:
        """Multiply the step size by a factor > 1, as far as no coordinate's passes `MAX_STEP`."""
        if len(self._x) + len(self._z):
            self._strategy._sigma *= factor  # noqa: SLF001
            self._limit()

    @property
    def steps(self) -> Vector:
        """Standard deviation of each float and int, shape (floats + ints,)."""
        if not len(self._x) + len(self._z):
            return np.zeros(0)
        return np.asarray(self._strategy._sigma * np.sqrt(np.diag(self._strategy._C)))  # noqa: SLF001

    @property
    def shares(self) -> Vector:
        """Largest probability of each choice dimension, shape (choices,)."""
        return np.asarray(self._strategy._q.max(axis=1)) if len(self._c) else np.zeros(0)  # noqa: SLF001

    def _first_shares(self, start: Vector, certainty: float | None) -> Vector:
        """Return the first probabilities, a row a choice dimension, padded with zeros."""
        sizes = [len(self._dimensions[index].choices) for index in self._c]
        shares = np.zeros((len(sizes), max(sizes)))
        for row, (index, size) in enumerate(zip(self._c, sizes, strict=True)):
            likely = 1.0 / size if certainty is None else max(certainty, 1.0 / size)
            shares[row, :size] = (1.0 - likely) / (size - 1)
            shares[row, min(int(start[index] * size), size - 1)] = likely
        return shares

    def _silenced(self, sample: MixedSample, expressed: NDArray[np.bool_]) -> Any:
        """Return the solution as it is told: what was not expressed says nothing."""
        solution = sample.solution
        raw = solution._v_raw  # noqa: SLF001
        if len(self._x) and raw is not None:
            raw = raw.copy()
            idle = np.flatnonzero(~expressed[self._x])
            # Outside of the bounds it would be punished for a value that nothing came of.
            raw[idle] = np.clip(raw[idle], 0.0, 1.0)
        choices = solution.c
        if choices is not None:
            # The distribution itself in place of a draw from it: its gradient is zero.
            choices = np.where(expressed[self._c][:, None], choices.astype(np.float64), self._strategy._q)  # noqa: SLF001
        return self._make(solution.x, solution.z, choices, raw)

    def _limit(self) -> None:
        largest = float(self.steps.max(initial=0.0))
        if largest > MAX_STEP:
            self._strategy._sigma *= MAX_STEP / largest  # noqa: SLF001


def _kind(dimension: Dimension) -> str:
    if dimension.kind == "choice":
        return "c"
    return "z" if dimension.kind == "int" and dimension.high - dimension.low < MOST_LEVELS else "x"


def _levels(dimension: Dimension) -> list[float]:
    """Return the places of an int's values in [0, 1], ascending."""
    return [dimension.to_unit(value) for value in range(round(dimension.low), round(dimension.high) + 1)]
