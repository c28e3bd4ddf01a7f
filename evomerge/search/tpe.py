"""TPE: the tree-structured Parzen estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evomerge.documents import StrictModel
from evomerge.search.options import parse_options
from evomerge.search.optuna_search import OptunaSearch

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class TpeOptions(StrictModel):
    """Options of TPE."""

    random: int = Field(default=10, ge=1)
    """Results that must be in before the model is used; until then candidates are uniform."""
    samples: int = Field(default=24, ge=1)
    """Points drawn from the model of the good ones, of which the most promising is the candidate."""
    multivariate: bool = True
    """Whether dimensions are modelled jointly; those that not every candidate has are always modelled alone."""


class Tpe(OptunaSearch):
    """TPE for one or several objectives, through Optuna's sampler.

    Bergstra, Bardenet, Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011; several
    objectives: Ozaki, Tanigaki, Watanabe and Onishi, "Multiobjective Tree-Structured Parzen Estimator for
    Computationally Expensive Optimization Problems", GECCO 2020. Candidates in flight count among the bad ones, so
    that workers do not all try the same.
    """

    name = "tpe"
    samples_inactive = False

    def _make_sampler(self, options: Mapping[str, Any] | None, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        parsed = parse_options(TpeOptions, options)
        return TPESampler(
            n_startup_trials=parsed.random,
            n_ei_candidates=parsed.samples,
            multivariate=parsed.multivariate,
            constant_liar=True,
            seed=seed,
        )
