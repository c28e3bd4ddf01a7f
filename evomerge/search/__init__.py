"""Searchers (what to try next) and the archive (the view that people want).

A searcher is driven by hand with `ask` and `tell`, with no cluster and no files:

    searcher = create_searcher(SearchConfig(searcher="cma_es", seed=0), space)
    for candidate in searcher.ask(4):
        searcher.tell(candidate, Outcome(state="feasible", objectives=(score(candidate.recipe),)))
"""

from __future__ import annotations

from evomerge import seeds
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.search.archive import Archive, Entry, HistoryPoint
from evomerge.search.cat_cma import CatCma, CatCmaOptions
from evomerge.search.cma_es import CmaEs, CmaEsOptions
from evomerge.search.config import SearchConfig
from evomerge.search.genomes import genome_from_unit, unit_from_genome
from evomerge.search.random_search import RandomOptions, RandomSearch
from evomerge.search.scalar import Scalarize, scalarize
from evomerge.search.staged import StagedSearch, Stages
from evomerge.search.types import Candidate, Outcome, Samples, Searcher, State
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
    "Outcome",
    "RandomOptions",
    "RandomSearch",
    "Samples",
    "Scalarize",
    "SearchConfig",
    "Searcher",
    "StagedSearch",
    "Stages",
    "State",
    "create_searcher",
    "genome_from_unit",
    "scalarize",
    "searcher_names",
    "unit_from_genome",
]

_SEARCHERS: dict[str, type[CmaEs | CatCma | RandomSearch]] = {
    "cat_cma": CatCma,
    "cma_es": CmaEs,
    "random": RandomSearch,
}


def searcher_names() -> tuple[str, ...]:
    """Return the names that `search.searcher` may take, sorted."""
    return tuple(sorted(_SEARCHERS))


def create_searcher(config: SearchConfig, space: Space) -> Searcher:
    """Return the searcher that a search file names, at its start.

    Raises:
        ConfigError: for an unknown searcher or option, or a space in which nothing varies.
    """
    if config.searcher not in _SEARCHERS:
        hint = did_you_mean(config.searcher, _SEARCHERS)
        raise ConfigError(f"search.searcher: there is no searcher {config.searcher!r}{hint}")
    if not space.dimensions:
        raise ConfigError("space: nothing varies, so there is nothing to search; give a parameter a range [low, high]")
    if isinstance(space, JointSpace) and space.schedule != "together":
        return _staged(config, space)
    return _single(config, space, config.seed)


def _single(config: SearchConfig, space: Space, seed: int) -> Searcher:
    return _SEARCHERS[config.searcher](space, seed=seed, options=config.options, scalarize=config.scalarize)


def _staged(config: SearchConfig, space: JointSpace) -> Searcher:
    stages = Stages(
        parts=space.parts,
        order=("parameter", "data_flow"),
        evaluations=space.stage_evaluations,
        repeat=space.schedule == "alternating",
    )
    return StagedSearch(
        space,
        stages,
        lambda part, stage: _single(config, part, seeds.derive(config.seed, "stage", stage)),
        scalarize=config.scalarize,
    )
