"""Searchers (what to try next) and the archive (the view that people want).

A searcher is driven by hand with `ask` and `tell`, with no cluster and no files:

    searcher = create_searcher(SearchConfig(searcher="cma_es", seed=0), space)
    for candidate in searcher.ask(4):
        searcher.tell(candidate, Outcome(state="feasible", objectives=(score(candidate.recipe),)))
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge import seeds
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.search.archive import Archive, Entry, HistoryPoint
from evomerge.search.cat_cma import CatCma, CatCmaOptions
from evomerge.search.cma_es import CmaEs, CmaEsOptions
from evomerge.search.config import SearchConfig
from evomerge.search.genomes import genome_from_unit, unit_from_genome
from evomerge.search.map_elites import MapElites, MapElitesOptions
from evomerge.search.natural_niches import NaturalNiches, NaturalNichesOptions
from evomerge.search.niches import Niches
from evomerge.search.nsga_ii import NsgaII, NsgaIIOptions
from evomerge.search.options import parse_options
from evomerge.search.portfolio import Portfolio, PortfolioOptions
from evomerge.search.random_search import RandomOptions, RandomSearch
from evomerge.search.scalar import Scalarize, scalarize
from evomerge.search.staged import StagedSearch, Stages
from evomerge.search.steered import Steered
from evomerge.search.tpe import Tpe, TpeOptions
from evomerge.search.types import Candidate, Outcome, Samples, Searcher, State
from evomerge.spaces.held import HeldSpace
from evomerge.spaces.joint import JointSpace
from evomerge.spaces.types import Space

__all__ = [
    "Archive",
    "Candidate",
    "CatCma",
    "CatCmaOptions",
    "CmaEs",
    "CmaEsOptions",
    "Entry",
    "HistoryPoint",
    "MapElites",
    "MapElitesOptions",
    "NaturalNiches",
    "NaturalNichesOptions",
    "Niches",
    "NsgaII",
    "NsgaIIOptions",
    "Outcome",
    "Portfolio",
    "PortfolioOptions",
    "RandomOptions",
    "RandomSearch",
    "Samples",
    "Scalarize",
    "SearchConfig",
    "Searcher",
    "StagedSearch",
    "Stages",
    "State",
    "Steered",
    "Tpe",
    "TpeOptions",
    "create_searcher",
    "genome_from_unit",
    "scalarize",
    "searcher_names",
    "steered_searcher",
    "unit_from_genome",
]

_SEARCHERS: dict[str, type[CmaEs | CatCma | MapElites | NaturalNiches | NsgaII | RandomSearch | Tpe]] = {
    "cat_cma": CatCma,
    "cma_es": CmaEs,
    "map_elites": MapElites,
    "natural_niches": NaturalNiches,
    "nsga_ii": NsgaII,
    "random": RandomSearch,
    "tpe": Tpe,
}


def searcher_names() -> tuple[str, ...]:
    """Return the names that `search.searcher` may take, sorted."""
    return tuple(sorted((*_SEARCHERS, "portfolio")))


def create_searcher(config: SearchConfig, space: Space, *, metrics: Sequence[str] = ()) -> Searcher:
    """Return the searcher that a search file names, at its start.

    Args:
        config: the `search:` section.
        space: where to search.
        metrics: whose scores per sample compete, where samples do and the options do not say; none: those of all.

    Raises:
        ConfigError: for an unknown searcher or option, or a space in which nothing varies.
    """
    if not space.dimensions:
        raise ConfigError("space: nothing varies, so there is nothing to search; give a parameter a range [low, high]")
    joint = space.own if isinstance(space, HeldSpace) else space
    if isinstance(joint, JointSpace) and joint.schedule != "together":
        return _staged(config, space, joint)
    return _single(config, space, config.seed, metrics)


def steered_searcher(config: SearchConfig, space: Space, *, metrics: Sequence[str] = ()) -> Steered:
    """Return the searcher that a search file names, at its start, as one that a person can steer.

    Raises:
        ConfigError: as `create_searcher` does.
    """
    held = HeldSpace(space)
    return Steered(create_searcher(config, held, metrics=metrics), held)


def _single(config: SearchConfig, space: Space, seed: int, metrics: Sequence[str] = ()) -> Searcher:
    if config.searcher == "portfolio":
        return _portfolio(config, space, seed, metrics)
    if config.searcher not in _SEARCHERS:
        hint = did_you_mean(config.searcher, searcher_names())
        raise ConfigError(f"search.searcher: there is no searcher {config.searcher!r}{hint}")
    searcher = _SEARCHERS[config.searcher]
    if config.minibatch is not None and searcher in (MapElites, NaturalNiches):
        raise ConfigError(
            f"search.minibatch: {config.searcher} compares candidates of all times, and scores on different documents "
            "do not compare; leave it out"
        )
    if searcher is NaturalNiches:
        return NaturalNiches(space, seed=seed, options=config.options, metrics=metrics)
    return searcher(space, seed=seed, options=config.options, scalarize=config.scalarize)


def _portfolio(config: SearchConfig, space: Space, seed: int, metrics: Sequence[str]) -> Portfolio:
    if config.minibatch is not None:
        raise ConfigError(
            "search.minibatch: the searchers of a portfolio hear each other, and scores on different documents do not "
            "compare; leave it out"
        )
    options = parse_options(PortfolioOptions, config.options)

    def make(stage_space: Space, number: int) -> Searcher:
        stage = options.stages[number]
        one = config.model_copy(update={"searcher": stage.searcher, "options": stage.options})
        # The first stage is the search that its searcher would do alone.
        return _single(one, stage_space, seeds.derive(seed, "portfolio", number) if number else seed, metrics)

    return Portfolio(space, options, make, scalarize=config.scalarize)


def _staged(config: SearchConfig, space: Space, joint: JointSpace) -> Searcher:
    stages = Stages(
        parts=joint.parts,
        order=("parameter", "data_flow"),
        evaluations=joint.stage_evaluations,
        repeat=joint.schedule == "alternating",
    )
    return StagedSearch(
        space,
        stages,
        lambda part, stage: _single(config, part, seeds.derive(config.seed, "stage", stage)),
        scalarize=config.scalarize,
    )
