"""NSGA-II and TPE, through Optuna: several objectives at once, and constraints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from evomerge import seeds
from evomerge.search.genomes import deactivate, genome_from_unit, numeric_genome
from evomerge.search.ledger import Ledger
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Dimension, Genome, Space, Value

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

CONSTRAINT = "violation"
UNMEASURED = 1e300
"""Violation of what could not be measured: behind everything that broke a constraint."""

_Param = str | int | float


class OptunaSearch(ABC):
    """A sampler of Optuna as a searcher: what its descendants share.

    - *Objectives.* Their number is that of the first outcome that has any. Until one is told, candidates are the
      space's start and then independent uniform ones, as Optuna's samplers begin too.
    - *Constraints.* One, whose value is the outcome's violation. What could not be measured (failed, or infeasible
      without a violation) breaks it more than anything else does.
    - *Dimensions.* Floats are sampled in [0, 1], whatever their scale; ints and choices as such.
    - *Parents* are not named: the samplers do not tell which ones they took.

    A study in memory, with the searcher's own random state, is a function of the order of asks and tells.

    Args:
        space: where to search.
        seed: of every random number.
        options: of the searcher.
        scalarize: not used: objectives stay apart.
    """

    name: ClassVar[str]
    samples_inactive: ClassVar[bool]
    """Whether a conditional dimension that is not active is sampled all the same, and not expressed."""

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",  # noqa: ARG002  the constructor of every searcher
    ) -> None:
        self._space = space
        self._seed = seed
        self._ledger = Ledger(space)
        self._sampler = self._make_sampler(options, seeds.derive(seed, self.name) % 2**32)
        self._distributions = {dimension.name: _distribution(dimension) for dimension in space.dimensions}
        self._study: Study | None = None
        self._trials: dict[int, Trial] = {}
        self._early_open: dict[int, Genome] = {}
        self._early_told: list[tuple[Genome, Outcome]] = []
        self._num_heard = 0

    @abstractmethod
    def _make_sampler(self, options: Mapping[str, Any] | None, seed: int) -> BaseSampler: ...

    def ask(self, n: int) -> list[Candidate]:
        """Return `n` new candidates."""
        return [self._draw() if self._study is None else self._suggest(self._study) for _ in range(n)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Hear the outcome of a candidate, in any order.

        Raises:
            ValueError: for a candidate that was never asked or was told already, or when the number of objectives
                changes.
        """
        self._check(outcome)
        self._ledger.close(candidate)
        study = self._study_for(outcome)
        if study is None:
            self._early_told.append((self._early_open.pop(candidate.id), outcome))
            return
        trial = self._trials.pop(candidate.id)
        values, violation = _result(outcome, len(study.directions))
        trial.set_constraint(CONSTRAINT, violation)
        study.tell(trial, values)

    def hear(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take note of what another searcher found: one more finished trial.

        Raises:
            ValueError: when the number of objectives changes.
        """
        self._check(outcome)
        self._num_heard += 1
        study = self._study_for(outcome)
        if study is None:
            self._early_told.append((candidate.genome, outcome))
        else:
            self._add(study, candidate.genome, outcome)

    @property
    def finished(self) -> str | None:
        """None: there is always another candidate."""
        return None

    def status(self) -> dict[str, float | int | str]:
        """Return how many candidates were asked, are open, and were heard of."""
        return {"asked": self._ledger.next_id, "open": self._ledger.num_open, "heard": self._num_heard}

    def _draw(self) -> Candidate:
        """Return a candidate that depends on its id alone."""
        id_ = self._ledger.next_id
        if id_ == 0:
            genome = self._space.start
        else:
            unit = seeds.generator(self._seed, self.name, "first", id_).random(len(self._space.dimensions))
            genome = genome_from_unit(self._space, unit)
        candidate = self._ledger.issue(genome, origin=f"{self.name} {'random' if id_ else 'start'}")
        self._early_open[id_] = candidate.genome
        return candidate

    def _suggest(self, study: Study) -> Candidate:
        """Return a candidate that the sampler made."""
        trial = study.ask()
        genome = self._genome(trial)
        candidate = self._ledger.issue(genome, **self._origin(study, trial))
        self._trials[candidate.id] = trial
        return candidate

    def _origin(self, study: Study, trial: Trial) -> dict[str, Any]:  # noqa: ARG002  for descendants
        """Return what the candidate of a trial is told about itself."""
        return {"origin": self.name}

    def _genome(self, trial: Trial) -> Genome:
        """Suggest the dimensions, a condition before what depends on it."""
        dimensions = {dimension.name: dimension for dimension in self._space.dimensions}
        values: dict[str, Value] = {}

        def value(name: str) -> Value:
            if name not in values:
                when = dimensions[name].active_when
                met = when is None or value(when[0]) == when[1]
                values[name] = self._value(trial, dimensions[name]) if met or self.samples_inactive else None
            return values[name]

        return deactivate(self._space.dimensions, [value(name) for name in dimensions])

    def _value(self, trial: Trial, dimension: Dimension) -> Value:
        name = dimension.name
        if dimension.kind == "choice":
            return trial.suggest_categorical(name, dimension.choices)
        if _is_plain_int(dimension):
            log = dimension.scale == "log"
            return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=log)
        return dimension.from_unit(trial.suggest_float(name, 0.0, 1.0))

    def _params(self, genome: Genome) -> dict[str, _Param]:
        """Return a genome as Optuna's parameters; an inactive dimension has its default's if it is sampled too."""
        params: dict[str, _Param] = {}
        for dimension, gene in zip(self._space.dimensions, genome, strict=True):
            value = dimension.default if gene is None and self.samples_inactive else gene
            if value is None and not self.samples_inactive:
                continue
            if dimension.kind == "choice":
                params[dimension.name] = dimension.choices[0] if value is None else str(value)
            elif _is_plain_int(dimension):
                params[dimension.name] = int(dimension.low if value is None else value)
            else:
                params[dimension.name] = min(1.0, max(0.0, dimension.to_unit(value)))
        return params

    def _check(self, outcome: Outcome) -> None:
        if self._study is not None and len(outcome.objectives) not in (0, len(self._study.directions)):
            raise ValueError(
                f"an outcome has {len(outcome.objectives)} objectives, those before it had "
                f"{len(self._study.directions)}; tell the same objectives of every candidate"
            )

    def _study_for(self, outcome: Outcome) -> Study | None:
        """Return the study, which begins with the first outcome that has objectives."""
        if self._study is None and outcome.objectives:
            self._study = _create_study(self._sampler, len(outcome.objectives))
            for genome, told in self._early_told:
                self._add(self._study, genome, told)
            for id_, genome in self._early_open.items():
                self._study.enqueue_trial(self._params(genome))
                self._trials[id_] = self._study.ask()
                self._genome(self._trials[id_])
                self._origin(self._study, self._trials[id_])
            self._early_told.clear()
            self._early_open.clear()
        return self._study

    def _add(self, study: Study, genome: Genome, outcome: Outcome) -> None:
        from optuna.trial import create_trial

        values, violation = _result(outcome, len(study.directions))
        params = self._params(numeric_genome(self._space, genome))
        distributions = {name: self._distributions[name] for name in params}
        study.add_trial(
            create_trial(
                values=values,
                params=params,
                distributions=distributions,
                constraints={CONSTRAINT: violation},
                system_attrs=self._marks(),
            )
        )

    def _marks(self) -> dict[str, Any]:
        """Return what the sampler must find in a trial that it did not make."""
        return {}


def _result(outcome: Outcome, num_objectives: int) -> tuple[list[float], float]:
    """Return values and violation; the values of what was not measured are never compared."""
    measured = bool(outcome.objectives) and all(map(math.isfinite, outcome.objectives))
    values = list(outcome.objectives) if measured else [0.0] * num_objectives
    if outcome.state == "feasible" and measured:
        return values, 0.0
    if outcome.state == "infeasible" and 0 < outcome.violation < math.inf:
        return values, outcome.violation
    return values, UNMEASURED


def _is_plain_int(dimension: Dimension) -> bool:
    return dimension.kind == "int" and dimension.scale != "logit"


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    if _is_plain_int(dimension):
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.scale == "log")
    return FloatDistribution(0.0, 1.0)


def _create_study(sampler: BaseSampler, num_objectives: int) -> Study:
    """Return a study in memory; Optuna announces each new one in its log, which nobody needs here."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=optuna.storages.InMemoryStorage(), sampler=sampler, directions=["maximize"] * num_objectives
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
