"""What a search file comes to once its sources are opened: space, objectives, identities, and how to score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from evomerge import operators
from evomerge.catalog import find_document
from evomerge.errors import StateError
from evomerge.fitness import (
    EngineChoice,
    Objectives,
    ScorerSpec,
    Split,
    Suite,
    Workplace,
    check_engine,
    check_fitness,
    choose_engine,
    load_suite,
)
from evomerge.recipe import Recipe, SourceInfo, identity
from evomerge.run.config import RunConfig
from evomerge.run.events import Event, Started
from evomerge.run.folder import config_data
from evomerge.run.grams import compute_grams
from evomerge.run.replay import space_of
from evomerge.search import Archive, Steered, steered_searcher
from evomerge.spaces import Grams, Space

if TYPE_CHECKING:
    from evomerge.merging import Sources
    from evomerge.operators.metadata import StatisticKind
    from evomerge.spaces.config import Range

NO_FOLDER = Path(Path.cwd().anchor)
"""Where relative names of a resolved configuration start: none is a local path, so the working folder must not
decide what a hub id or a catalogue name means."""


@dataclass(frozen=True)
class Problem:
    """A search that could start: everything but the state."""

    config: RunConfig
    space: Space
    objectives: Objectives
    infos: Mapping[str, SourceInfo]
    """Content hash and layer count of each source, by alias."""
    suite: Suite
    scorer: ScorerSpec
    """Builds the scorer inside a worker."""
    engine: EngineChoice | None = None
    """The engine that was decided on, where that was asked for; `config` then names it too."""
    grams: Grams | None = None
    """Of the sources, for a piecewise space."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """What names of sources on a hub meant when the run started (`checkpoints.hub_commits`); `config` names these."""

    def searcher(self) -> Steered:
        """Return the searcher, at its start.

        Raises:
            ConfigError: for an unknown searcher or option.
        """
        return steered_searcher(self.config.search, self.space, metrics=self.objectives.wanted)

    def identity(self, recipe: Recipe) -> str:
        """Return the SHA-256 identity of a recipe over this search's sources."""
        return identity(recipe, self.infos)

    def pinned(self, recipe: Recipe) -> Recipe:
        """Return a recipe with this search's commits in place of the names of sources on a hub."""
        from evomerge.checkpoints import pinned

        return recipe.model_copy(update={"sources": pinned(recipe.sources, self.commits)})

    def has_split(self, split: Split) -> bool:
        """Return whether the suite sets documents aside for a split."""
        shares = self.suite.config.splits
        return {"search": shares.search, "validation": shares.validation, "test": shares.test}[split] > 0

    def with_config(self, config: RunConfig) -> Problem:
        """Return the same problem under another budget."""
        return replace(self, config=config)

    def references(self) -> dict[str, Recipe]:
        """Return the recipes that candidates are compared with, by name (`parent:math`, `uniform`, ...)."""
        config, wanted = self.config, self.config.references
        experts = [alias for alias in config.sources if alias != config.base]
        found: dict[str, Recipe] = {}
        if len({info.num_layers for info in self.infos.values()}) > 1:
            # Sources of different depth have no average, and each parent stands for itself.
            return {f"parent:{alias}": self._alone(alias) for alias in config.sources} if wanted.parents else {}
        if wanted.parents:
            for alias in config.sources:
                found[f"parent:{alias}"] = self._blend(method="linear", weight={alias: 1.0})
        if wanted.uniform:
            found["uniform"] = self._blend(method="linear", weight=dict.fromkeys(experts, 1.0))
        if config.base is not None:
            for step in range(1, wanted.coefficients + 1):
                value = 0.1 if wanted.coefficients == 1 else 0.1 + 0.9 * (step - 1) / (wanted.coefficients - 1)
                found[f"coefficient:{value:.2f}"] = self._blend(method="task_arithmetic", weight=round(value, 2))
        return found

    def _blend(self, **blend: object) -> Recipe:
        return all_sources(self.config, blend=blend)

    def _alone(self, alias: str) -> Recipe:
        data = config_data(self.config)
        source = data["sources"][alias]
        blend = {"method": "linear", "weight": 1.0}
        if self.config.tokenizer is not None:
            layers = [{"take": {alias: index}} for index in range(self.infos[alias].num_layers)]
            ends = {part: {"take": [alias]} for part in ("embeddings", "head")}
            keys = {"sources": data["sources"], "tokenizer": data["tokenizer"], "dtype": self.config.engine.dtype}
            return Recipe.from_mapping({"recipe": 1, **keys, "base": alias, "layers": layers, **ends})
        return Recipe.from_mapping(
            {"recipe": 1, "sources": {alias: source}, "dtype": self.config.engine.dtype, "blend": blend}
        )


def all_sources(config: RunConfig, *, blend: Mapping[str, object]) -> Recipe:
    """Return a recipe over all sources of a search with one blend for the whole model."""
    data = config_data(config)
    keys = {key: data[key] for key in ("sources", "base", "tokenizer") if data[key] is not None}
    return Recipe.from_mapping({"recipe": 1, **keys, "dtype": config.engine.dtype, "blend": dict(blend)})


def open_search_sources(config: RunConfig) -> Sources:
    """Open the sources of a search; they may differ in depth where it searches routes alone.

    Raises:
        SourceError: a source that cannot be read or does not fit the others.
    """
    from evomerge.merging import open_sources

    recipe = all_sources(config, blend={"method": "linear"})
    return open_sources(recipe, NO_FOLDER, any_depth=config.space.kind == "data_flow")


def open_problem(
    config: RunConfig,
    *,
    check_weights: bool = False,
    grams: Grams | None = None,
    headers: Sources | None = None,
    commits: Mapping[str, str] | None = None,
) -> Problem:
    """Open the sources (headers and content hashes, no weights kept) and check that everything fits.

    Args:
        config: the search file.
        check_weights: for a search that is to start: also decide on the engine, hold sources on a hub to the commits
            that they are at now, and read every weight once, to refuse NaN and infinity now and not in every candidate.
        grams: of the sources, where they are known; else a piecewise space reads every weight once to know them.
        headers: the sources by their headers alone; then no weight is read, identities are not those of a run, and the
            engine is decided on.
        commits: what names of sources on a hub meant when the run started, where it has.

    Raises:
        ConfigError: a task, metric, parameter, range, searcher or option that does not exist.
        SourceError: a source that cannot be read or does not fit the others.
        NotBuiltError: a kind of search that this version cannot run.
    """
    from evomerge.checkpoints import check_finite, hub_commits, parameter_names, pinned

    check_engine(config.engine)
    suite = load_suite(find_document(config.fitness.suite, NO_FOLDER))
    objectives = check_fitness(config.fitness, suite)
    # Refuses too many objectives and a wrong number of weights.
    Archive(objectives.names, scalarize=config.search.scalarize)
    if commits is None:
        commits = hub_commits(config.sources, NO_FOLDER) if check_weights else {}
    config = config.model_copy(update={"sources": pinned(config.sources, commits)})
    sources = open_search_sources(config) if headers is None else headers
    engine = None
    if check_weights or headers is not None:
        engine = choose_engine(config.engine, sources.models[sources.reference].folder, workplace(config))
        config = config.model_copy(update={"engine": config.engine.model_copy(update={"kind": engine.kind})})
    infos = dict(sources.infos)
    grams = compute_grams(config, sources) if grams is None else grams
    problem = Problem(
        config=config,
        space=space_of(config, infos, grams),
        objectives=objectives,
        infos=infos,
        suite=suite,
        scorer=ScorerSpec(
            sources=config.sources,
            base=config.base,
            suite=suite.path,
            base_dir=NO_FOLDER,
            engine=config.engine,
            tokenizer=config.tokenizer,
            contents=infos if headers is None else {},
        ),
        engine=engine,
        grams=grams,
        commits=commits,
    )
    problem.searcher()  # refuses an unknown searcher or option before anything is written
    _check_statistics(config, sources)
    if check_weights:
        for alias, model in sources.models.items():
            check_finite(model, alias, parameter_names(model))
    return problem


def _check_statistics(config: RunConfig, sources: Sources) -> None:
    """Refuse a search over methods that need to know of a source what was not measured of it.

    Raises:
        RecipeError: naming the first such source and the kind.
    """
    for method in config.space.methods:
        spec = operators.get(method)
        defaults: dict[str, Range] = {parameter.name: parameter.default for parameter in spec.parameters}
        blended = [alias for alias in config.sources if spec.base == "ignored" or alias != config.base]
        for need in spec.needs:
            written = config.space.parameters.get(need, defaults.get(need, need))
            for kind in written if isinstance(written, tuple) else (written,):
                sources.check_measured(blended, cast("StatisticKind", kind), method)


def workplace(config: RunConfig) -> Workplace:
    """Return what is known of the machines on which a search's workers will run."""
    executor = config.executor
    if executor.kind == "ray":
        return Workplace(is_here=executor.address is None, gpus=executor.gpus_per_worker)
    import torch

    return Workplace(gpus=torch.cuda.device_count())


def check_sources(path: Path, started: Event | None, problem: Problem) -> None:
    """Refuse sources that are not what they were when a run started: scores and weights of two models would be mixed.

    Raises:
        StateError: naming the first source that changed.
    """
    known = started.sources if isinstance(started, Started) else {}
    for alias, info in problem.infos.items():
        if alias in known and known[alias].content_hash != info.content_hash:
            raise StateError(
                f"{path}: sources.{alias}: the model has changed since the run started (its content hashes to "
                f"{info.content_hash[:12]}, then to {known[alias].content_hash[:12]}); restore it, or start a new run"
            )
        if alias in known and known[alias].statistics != info.statistics:
            raise StateError(
                f"{path}: sources.{alias}.statistics: these have changed since the run started; restore them, or start "
                "a new run"
            )
