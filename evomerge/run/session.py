"""Starting and continuing a run: folder, lease, journal, replay, executor, coordinator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from evomerge import __version__
from evomerge.cluster import RayExecutor, create_executor
from evomerge.cluster.types import Executor
from evomerge.documents import Document
from evomerge.errors import ConfigError, StateError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.run.budget import Meter
from evomerge.run.commands import Inbox
from evomerge.run.config import RunConfig
from evomerge.run.coordinator import Coordinator
from evomerge.run.events import Budget, Event, SourceRecord, Started, Workers
from evomerge.run.exporters import Exporter, MetricsServer, Monitor, RayMetrics
from evomerge.run.flight import idle_workers
from evomerge.run.folder import MAY_CHANGE, RunFolder, config_data, config_digest
from evomerge.run.grams import keep_grams, stored_grams, write_grams
from evomerge.run.journal import JournalWriter, first_event
from evomerge.run.lease import Lease
from evomerge.run.load import apply_overrides
from evomerge.run.mirror import Mirror, mirrored
from evomerge.run.mirror import has_run as has_mirrored_run
from evomerge.run.observer import DRAINING, Ending, Observer, Watcher, unobserved
from evomerge.run.problem import Problem, check_sources, open_problem
from evomerge.run.replay import replay
from evomerge.run.signals import draining_on_signals
from evomerge.run.state import RunState
from evomerge.run.steering import steered_config
from evomerge.run.view import Run
from evomerge.spaces import Grams

_log = logging.getLogger(__name__)

ExecutorFactory = Callable[[Problem], Executor]
"""Where scoring runs; a seam for executors of one's own."""


def default_executor(problem: Problem, visible: Sequence[Path] = ()) -> Executor:
    """Return the executor that the search file asks for; every machine of a cluster must see what is `visible`."""
    return create_executor(problem.config.executor, problem.scorer, visible)


@dataclass(frozen=True, slots=True)
class Result:
    """How a session ended."""

    path: Path
    ending: Ending


@dataclass(frozen=True, slots=True)
class _Around:
    """What accompanies a session."""

    observer: Observer
    executor: ExecutorFactory | None
    """Left out: what the search file asks for."""
    mirror: Mirror | None
    server: MetricsServer | None


def exists(path: Path, mirror: str | None = None) -> bool:
    """Tell whether there is a run to continue, in its folder or in its mirror.

    Raises:
        ConfigError, StorageError: when the mirror cannot be used or reached.
    """
    return (path / "config.yaml").exists() or has_mirrored_run(mirror)


def start(
    config: RunConfig,
    path: Path,
    *,
    observer: Observer = unobserved,
    executor: ExecutorFactory | None = None,
    mirror: str | None = None,
    metrics: str | None = None,
) -> Result:
    """Start a run in a new folder and work on it until it is finished or paused.

    Args:
        config: what is searched.
        path: the run folder.
        observer: hears how it goes.
        executor: where scoring runs; left out: where the search file says.
        mirror: fsspec address to which the run is copied all the time; it must hold no run.
        metrics: `PORT` or `HOST:PORT` where Prometheus finds the run's figures.

    Raises:
        ConfigError, SourceError, NotBuiltError: before anything is written.
        StateError: when a run is there already, in the folder or in the mirror.
        RunHeldError: when another coordinator holds the folder or the mirror.
        StorageError: when the mirror cannot be reached, or the disk refuses.
    """
    if (path / "config.yaml").exists():
        _check_config(RunFolder.open(path), config)
        raise StateError(f"{path}: this run was started already; continue it with `evomerge resume {path}`")
    with _serving(metrics) as server, mirrored(mirror) as copy:
        if copy is not None:
            copy.check_free()
        problem = open_problem(config, check_weights=True)
        if problem.engine is not None:
            _log.info("engine: %s (%s)", problem.engine.kind, problem.engine.reason)
        folder = RunFolder.create(path, problem.config, problem.engine, problem.commits)
        return _work(folder, problem, _Around(observer, executor, copy, server))


def resume(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    config: RunConfig | None = None,
    observer: Observer = unobserved,
    executor: ExecutorFactory | None = None,
    mirror: str | None = None,
    metrics: str | None = None,
) -> Result:
    """Continue a run from its folder alone, or from its mirror.

    Args:
        path: the run folder.
        overrides: `budget.KEY=VALUE` or `executor.KEY=VALUE` texts; a changed budget is journaled.
        config: where given, it must be the run's own but for budget and executor.
        observer: hears how it goes.
        executor: where scoring runs; left out: where the search file says.
        mirror: fsspec address to which the run is copied all the time; what the folder lacks of what is there is
            fetched first.
        metrics: `PORT` or `HOST:PORT` where Prometheus finds the run's figures.

    Raises:
        StateError: when the folder is not a run or its journal is broken, `config` is another run's, or folder and
            mirror went on separately.
        ConfigError: for an override of anything else, or a wrong value.
        RunHeldError: when another coordinator holds the run.
        StorageError: when the mirror cannot be reached, or the disk refuses.
    """
    with _serving(metrics) as server, mirrored(mirror, path) as copy:
        return _resume(path, overrides, config, _Around(observer, executor, copy, server))


def _serving(metrics: str | None) -> AbstractContextManager[MetricsServer | None]:
    return nullcontext() if metrics is None else MetricsServer(metrics)


def _resume(path: Path, overrides: Sequence[str], config: RunConfig | None, around: _Around) -> Result:
    folder = RunFolder.open(path)
    own = folder.config()
    changed = own
    if config is not None:
        _check_config(folder, config)
        changed = own.model_copy(update={key: getattr(config, key) for key in MAY_CHANGE})
    changed = override(changed, overrides)
    before, after = own.budget.model_dump(), changed.budget.model_dump()
    named = {text.split("=")[0].strip() for text in overrides}
    limits = {key: value for key, value in after.items() if f"budget.{key}" in named or value != before[key]}
    changes: list[Event] = [Budget(changes=limits)] if limits else []
    if "executor.workers" in named or changed.executor.workers != own.executor.workers:
        changes.append(Workers(workers=changed.executor.workers))
    problem = open_problem(changed, grams=_known_grams(folder), commits=folder.commits())
    return _work(folder, problem, around, changes, continues_stopped=config is None)


def _known_grams(folder: RunFolder) -> Grams | None:
    """Return the Gram matrices that the run started with; None where it needs none, or they are to be made again."""
    started = first_event(folder.journal)
    named = started.grams if isinstance(started, Started) else None
    return stored_grams(folder, started) if named is not None and folder.inside(named).exists() else None


def _check_config(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a configuration that is not the run's.

    What was decided at its start is what `engine.kind: auto` and names of sources on a hub stand for.
    """
    from evomerge.checkpoints import pinned

    config = config.model_copy(update={"sources": pinned(config.sources, folder.commits())})
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
    around: _Around,
    changes: Sequence[Event] = (),
    *,
    continues_stopped: bool = True,
) -> Result:
    with Lease(folder.path), JournalWriter(folder.journal) as journal, _copied(around.mirror, folder, journal):
        began_ns = time.time_ns()
        started = journal.events[0] if journal.events else journal.append(_started(folder, problem))
        check_sources(folder.path, started, problem)
        keep_grams(folder, started, problem.grams)
        replayed = replay(
            journal.events,
            problem.searcher(),
            identify=problem.identity,
            store=folder.scores,
            scalarize=problem.config.search.scalarize,
            thorough=False,
        )
        if replayed.state.lifecycle == "stopped":
            _go_on_after_stop(folder, asked=continues_stopped)
        for change in changes:
            replayed.state.apply(journal.append(change))
        problem = problem.with_config(steered_config(problem.config, replayed.state))
        if (idle := idle_workers(problem.config, problem.searcher())) is not None:
            _log.warning("%s", idle)
        meter = Meter(problem.config, elapsed_s=replayed.state.elapsed_s, gpu_s=replayed.state.gpu_s)
        if isinstance(around.observer, Watcher):
            around.observer.watch(Run(folder.path, state=replayed.state))
        workers = _executor(around, problem, folder)
        try:
            coordinator = Coordinator(
                problem,
                replayed,
                journal=journal,
                scores=folder.scores,
                executor=workers,
                meter=meter,
                observer=_watching(around, replayed.state, workers),
                inbox=Inbox(folder.path, began_ns),
            )
            with draining_on_signals(coordinator):
                ending = coordinator.run()
        finally:
            workers.close()
    return Result(folder.path, ending)


def _go_on_after_stop(folder: RunFolder, *, asked: bool) -> None:
    """Say that a stopped run goes on.

    Raises:
        StateError: when nobody asked for it: what restarts runs by itself must not restart this one.
    """
    if not asked:
        raise StateError(f"{folder.path}: this run was stopped; continue it with `evomerge resume {folder.path}`")
    _log.warning("%s was stopped; it goes on now, as you ask", folder.path)


def _executor(around: _Around, problem: Problem, folder: RunFolder) -> Executor:
    """Return where scoring runs.

    All its machines must see local sources, the suite, and, where it has no mirror, the run, of which one file stands
    for all.
    """
    if around.executor is not None:
        return around.executor(problem)
    suite = problem.suite.path if problem.suite.include is None else problem.suite.include
    visible = [*_local(problem.config.sources), problem.suite.path, suite]
    if around.mirror is None:
        visible.append(folder.config_path)
    return default_executor(problem, tuple(dict.fromkeys(visible)))


def _local(sources: Mapping[str, SourceConfig]) -> Iterator[Path]:
    """Yield the files and folders on this machine that sources name; zoo models and hub ids are none."""
    for source in sources.values():
        if isinstance(source.model, Recipe):
            yield from _local(source.model.sources)
        named = (source.model, source.adapter, source.statistics)
        yield from (Path(name) for name in named if isinstance(name, str) and Path(name).is_absolute())


def _copied(mirror: Mirror | None, folder: RunFolder, journal: JournalWriter) -> AbstractContextManager[None]:
    return nullcontext() if mirror is None else mirror.following(folder, journal)


def _watching(around: _Around, state: RunState, workers: Executor) -> Observer:
    """Return an observer that also measures the run, and knows how far the mirror is."""
    exporters: list[Exporter] = [] if around.server is None else [around.server]
    if isinstance(workers, RayExecutor):
        exporters.append(RayMetrics())
    monitor = Monitor(state, exporters)

    def observe(figures: Mapping[str, float | int | str]) -> None:
        # Within a signal handler there is that figure alone, and nothing may be done.
        if figures.keys() != {DRAINING}:
            if around.mirror is not None:
                figures = {**figures, "mirror_behind": around.mirror.behind}
            monitor.look(figures)
        around.observer(figures)

    return observe


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
