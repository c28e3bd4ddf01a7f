"""Starting and continuing a run: folder, lease, journal, replay, executor, coordinator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from evomerge import __version__
from evomerge.cluster import create_executor
from evomerge.cluster.types import Executor
from evomerge.documents import Document
from evomerge.errors import ConfigError, StateError
from evomerge.run.budget import Meter
from evomerge.run.config import RunConfig
from evomerge.run.coordinator import Coordinator, Ending, Observer, unobserved
from evomerge.run.events import Budget, SourceRecord, Started
from evomerge.run.folder import MAY_CHANGE, RunFolder, config_data, config_digest
from evomerge.run.grams import keep_grams, stored_grams, write_grams
from evomerge.run.journal import JournalReader, JournalWriter
from evomerge.run.lease import Lease
from evomerge.run.load import apply_overrides
from evomerge.run.problem import Problem, check_sources, open_problem
from evomerge.run.replay import replay
from evomerge.run.signals import draining_on_signals
from evomerge.spaces import Grams

_log = logging.getLogger(__name__)

ExecutorFactory = Callable[[Problem], Executor]
"""Where scoring runs; a seam for executors of one's own."""


def default_executor(problem: Problem) -> Executor:
    """Return the executor that the search file asks for."""
    return create_executor(problem.config.executor, problem.scorer)


@dataclass(frozen=True, slots=True)
class Result:
    """How a session ended."""

    path: Path
    ending: Ending


def start(
    config: RunConfig, path: Path, *, observer: Observer = unobserved, executor: ExecutorFactory = default_executor
) -> Result:
    """Start a run in a new folder and work on it until it is finished or paused.

    Raises:
        ConfigError, SourceError, NotBuiltError: before anything is written.
        StateError: when a run is there already.
        RunHeldError: when another coordinator holds the folder.
    """
    if (path / "config.yaml").exists():
        _check_config(RunFolder.open(path), config)
        raise StateError(f"{path}: this run was started already; continue it with `evomerge resume {path}`")
    problem = open_problem(config, check_weights=True)
    if problem.engine is not None:
        _log.info("engine: %s (%s)", problem.engine.kind, problem.engine.reason)
    folder = RunFolder.create(path, problem.config, problem.engine)
    return _work(folder, problem, observer, executor)


def resume(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    config: RunConfig | None = None,
    observer: Observer = unobserved,
    executor: ExecutorFactory = default_executor,
) -> Result:
    """Continue a run from its folder alone.

    Args:
        path: the run folder.
        overrides: `budget.KEY=VALUE` or `executor.KEY=VALUE` texts; a changed budget is journaled.
        config: where given, it must be the run's own but for budget and executor.
        observer: hears how it goes.
        executor: where scoring runs.

    Raises:
        StateError: when the folder is not a run or its journal is broken, or `config` is another run's.
        ConfigError: for an override of anything else, or a wrong value.
        RunHeldError: when another coordinator holds the run.
    """
    folder = RunFolder.open(path)
    own = folder.config()
    changed = own
    if config is not None:
        _check_config(folder, config)
        changed = own.model_copy(update={key: getattr(config, key) for key in MAY_CHANGE})
    changed = override(changed, overrides)
    before, after = own.budget.model_dump(), changed.budget.model_dump()
    named = {text.split("=")[0].strip().removeprefix("budget.") for text in overrides}
    changes = {key: value for key, value in after.items() if key in named or value != before[key]}
    return _work(folder, open_problem(changed, grams=_known_grams(folder)), observer, executor, changes)


def _known_grams(folder: RunFolder) -> Grams | None:
    """Return the Gram matrices that the run started with; None where it needs none, or they are to be made again."""
    events = JournalReader(folder.journal).poll() if folder.journal.exists() else []
    started = events[0] if events else None
    named = started.grams if isinstance(started, Started) else None
    return stored_grams(folder, started) if named is not None and folder.inside(named).exists() else None


def _check_config(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a configuration that is not the run's; `engine.kind: auto` stands for what was decided at its start."""
    if config.engine.kind == "auto":
        decided = config.engine.model_copy(update={"kind": folder.config().engine.kind})
        config = config.model_copy(update={"engine": decided})
    folder.check_config(config)


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a run's configuration with other budget or executor settings.

    Raises:
        ConfigError: for an override of anything that would change what the search finds.
    """
    for text in overrides:
        if text.split(".")[0].strip() not in MAY_CHANGE:
            raise ConfigError(
                f"--set {text}: a run continues with its own {text.split('.')[0]}; only budget and executor may change"
            )
    data = config_data(config)
    apply_overrides(data, overrides)
    return Document(data=data, name="--set", lines={}).parse(RunConfig)


def _work(
    folder: RunFolder,
    problem: Problem,
    observer: Observer,
    executor: ExecutorFactory,
    changes: Mapping[str, float | int | None] = MappingProxyType({}),
) -> Result:
    with Lease(folder.path), JournalWriter(folder.journal) as journal:
        events = journal.events or (journal.append(_started(folder, problem)),)
        check_sources(folder.path, events[0], problem)
        keep_grams(folder, events[0], problem.grams)
        replayed = replay(
            events,
            problem.searcher(),
            identify=problem.identity,
            store=folder.scores,
            scalarize=problem.config.search.scalarize,
        )
        if changes:
            replayed.state.apply(journal.append(Budget(changes=dict(changes))))
        budget = problem.config.budget.model_copy(update=replayed.state.budget_changes)
        problem = problem.with_config(problem.config.model_copy(update={"budget": budget}))
        meter = Meter(problem.config, elapsed_s=replayed.state.elapsed_s)
        workers = executor(problem)
        try:
            coordinator = Coordinator(
                problem,
                replayed,
                journal=journal,
                scores=folder.scores,
                executor=workers,
                meter=meter,
                observer=observer,
            )
            with draining_on_signals(coordinator):
                ending = coordinator.run()
        finally:
            workers.close()
    return Result(folder.path, ending)


def _started(folder: RunFolder, problem: Problem) -> Started:
    return Started(
        config_digest=config_digest(problem.config),
        version=__version__,
        sources={
            alias: SourceRecord(
                content_hash=info.content_hash, num_layers=info.num_layers, statistics=dict(info.statistics)
            )
            for alias, info in problem.infos.items()
        },
        objectives=problem.objectives.names,
        grams=None if problem.grams is None else write_grams(folder, problem.grams),
    )
