"""Replay: a run's searcher, brought from its start to where the journal ends.

A searcher is a deterministic function of its seed and of the order of asks, tells, adoptions and holds, and the journal
has that order. So resuming is asking again and telling what was journaled, and each candidate must come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.errors import StateError
from evomerge.fitness import Evaluation, Objectives
from evomerge.recipe import Recipe, SourceInfo, identity
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated, Event, Held, Started
from evomerge.run.folder import RunFolder, config_digest
from evomerge.run.grams import stored_grams
from evomerge.run.journal import JournalReader
from evomerge.run.scores import ScoreStore
from evomerge.run.state import RunState
from evomerge.search import Candidate, Scalarize, Steered, steered_searcher
from evomerge.spaces import Grams, Space, create_space

SPOT_CHECKS = 400
"""A quick replay of a long journal compares about half as many recipes, evenly spread: two lines a candidate."""
_TOLERANCE = 1e-9
"""Journaled means and those of the score files may differ by rounding, where NumPy sums in another order."""


@dataclass(frozen=True)
class ReplayState:
    """Where a run stands, with its searcher at the same point."""

    searcher: Steered
    state: RunState
    candidates: dict[int, Candidate] = field(default_factory=dict)
    """Those that were asked and have no outcome on the search split, in the order of asking."""

    @property
    def open(self) -> tuple[Candidate, ...]:
        """Candidates that were asked and have no outcome on the search split, in the order of asking."""
        return tuple(self.candidates.values())


def replay(
    events: Sequence[Event],
    searcher: Steered,
    *,
    identify: Callable[[Recipe], str],
    store: ScoreStore | None = None,
    scalarize: Scalarize = "mean",
    thorough: bool = True,
) -> ReplayState:
    """Drive a fresh searcher through a journal.

    Args:
        events: the journal.
        searcher: one at its start; it is at the journal's end afterwards.
        identify: returns a recipe's identity, as it was journaled.
        store: the per-sample scores, for searchers that look at them; read at the first look.
        scalarize: as in the search file.
        thorough: whether every recipe is compared; else only a few hundred, evenly spread: recipes follow from
            genomes, which are all compared.

    Raises:
        StateError: when the searcher asks for something else than was journaled, naming the line and what
            differs; or when the journal contradicts itself.
    """
    result = ReplayState(searcher=searcher, state=RunState(scalarize, events))
    step = 1 if thorough else max(1, len(events) // SPOT_CHECKS)
    for event in events:
        result.state.apply(event)
        if isinstance(event, Asked):
            asked = [searcher.adopt(event.genome)] if event.injected else searcher.ask(1)
            _compare(event, asked)
            if event.candidate % step == 0:
                _compare_recipe(event, asked[0], identify)
            result.candidates[event.candidate] = asked[0]
        elif isinstance(event, Held):
            searcher.hold(event.source, event.weight)
        elif isinstance(event, Evaluated) and event.split == "search" and isinstance(event.candidate, int):
            searcher.tell(result.candidates.pop(event.candidate), result.state.outcome(event, store))
    return result


def _compare(event: Asked, asked: Sequence[Candidate]) -> None:
    if len(asked) != 1:
        raise _mismatch(event, f"the searcher asked for {len(asked)} candidates where the journal has one")
    candidate = asked[0]
    if candidate.id != event.candidate:
        raise _mismatch(event, f"the searcher's candidate is {candidate.id}, the journal's {event.candidate}")
    for place, (new, old) in enumerate(zip(candidate.genome, event.genome, strict=False)):
        if not _same_number(new, old) and repr(new) != repr(old):
            raise _mismatch(event, f"gene {place} is {new!r} on replay, {old!r} in the journal")
    if len(candidate.genome) != len(event.genome):
        raise _mismatch(event, f"the genome has {len(candidate.genome)} genes, {len(event.genome)} in the journal")
    if candidate.parents != event.parents:
        raise _mismatch(event, f"the parents are {candidate.parents} on replay, {event.parents} in the journal")


def _compare_recipe(event: Asked, candidate: Candidate, identify: Callable[[Recipe], str]) -> None:
    recipe_id = identify(candidate.recipe)
    if recipe_id != event.recipe_id:
        raise _mismatch(event, f"the recipe is {recipe_id[:12]} on replay, {event.recipe_id[:12]} in the journal")


def _same_number(new: object, old: object) -> bool:
    """Compare a gene by value and kind: NumPy's float64 prints otherwise than the float that it is."""
    return isinstance(new, float) and isinstance(old, float) and new == old


def _mismatch(event: Asked, what: str) -> StateError:
    return StateError(
        f"journal line {event.seq}: candidate {event.candidate} comes out otherwise on replay: {what}; "
        "continue with the evomerge and the library versions in environment.json"
    )


def source_infos(started: Started) -> dict[str, SourceInfo]:
    """Return what identities need of the sources, as it was when the run started; no weights are read."""
    return {
        alias: SourceInfo(record.content_hash, record.num_layers, statistics=record.statistics)
        for alias, record in started.sources.items()
    }


def space_of(config: RunConfig, infos: Mapping[str, SourceInfo], grams: Grams | None = None) -> Space:
    """Return the space that a run searches; `grams` is for a piecewise one.

    Raises:
        ConfigError: when the space does not fit the sources.
    """
    return create_space(
        config.space,
        sources=config.sources,
        base=config.base,
        num_layers={alias: info.num_layers for alias, info in infos.items()},
        dtype=config.engine.dtype,
        tokenizer=config.tokenizer,
        seed=config.search.seed,
        grams=grams,
    )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` compared; that it returned means that everything agreed."""

    run: str
    events: int
    """Lines whose checksum was verified."""
    candidates: int
    """Candidates that came out the same on replay."""
    evaluations: int
    """Outcomes in the journal, on every split, of references too."""
    scores_files: int
    """Score files whose content is what their name says."""
    objectives: int
    """Outcomes whose objectives were computed again from the per-sample scores."""
    open: int
    """Candidates that were asked and have no outcome yet."""
    torn_bytes: int
    """Length of a torn last line, which a crash leaves and the next resume drops."""


def verify(path: Path) -> VerifyReport:
    """Replay a run and compare everything that can be compared without the weights. Never writes.

    Raises:
        StateError: for the first thing that does not agree, naming its line or file.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    reader = JournalReader(folder.journal)
    events = reader.poll()
    started = events[0] if events else None
    if not isinstance(started, Started):
        raise StateError(f"{folder.journal}: nothing was journaled yet; resume the run")
    if started.config_digest != config_digest(config):
        raise StateError(f"{folder.config_path}: changed since the run started; restore it from a copy")
    infos = source_infos(started)
    space = space_of(config, infos, stored_grams(folder, started))
    objectives = Objectives.parse(config.fitness)
    searcher = steered_searcher(config.search, space, metrics=objectives.wanted)
    replayed = replay(
        events,
        searcher,
        identify=lambda recipe: identity(recipe, infos),
        store=folder.scores,
        scalarize=config.search.scalarize,
    )
    state = replayed.state
    _verify_references(state, infos)
    files, measured = _verify_scores(folder, config, state)
    return VerifyReport(
        run=folder.name,
        events=len(events),
        candidates=len(state.asked),
        evaluations=len(state.evaluations),
        scores_files=files,
        objectives=measured,
        open=len(state.open_ids),
        torn_bytes=reader.torn_bytes,
    )


def _verify_references(state: RunState, infos: Mapping[str, SourceInfo]) -> None:
    """Check that the recipe of every reference has the identity that was journaled."""
    for reference in state.references.values():
        if identity(Recipe.from_mapping(reference.recipe), infos) != reference.recipe_id:
            raise StateError(
                f"journal line {reference.seq}: the reference {reference.name!r} has another recipe than its "
                "identity says; restore the run folder from a copy"
            )


def _verify_scores(folder: RunFolder, config: RunConfig, state: RunState) -> tuple[int, int]:
    """Check every score file that the journal names, and the objectives that were computed from it."""
    objectives = Objectives.parse(config.fitness)
    files: set[str] = set()
    measured = 0
    for event in state.evaluations.values():
        if event.scores is None:
            continue
        evaluation = folder.scores.read(event.scores)
        files.add(event.scores)
        if evaluation.split != event.split:
            raise StateError(f"journal line {event.seq}: its scores are of the {evaluation.split} split")
        if event.objectives:
            _recompute(event, evaluation, objectives)
            measured += 1
    return len(files), measured


def _recompute(event: Evaluated, evaluation: Evaluation, objectives: Objectives) -> None:
    """Compute an outcome's objectives and constraints again from its per-sample scores, and compare."""
    values = zip(objectives.names, objectives.measure(evaluation), strict=True)
    found = {name: value.mean for name, value in values}
    found["the constraints' violation"] = objectives.violation(evaluation)
    for name, value in found.items():
        journaled = event.objectives.get(name, event.violation)
        if abs(value - journaled) > _TOLERANCE * max(1.0, abs(value)):
            raise StateError(
                f"journal line {event.seq}: {name} is {journaled!r}, but its per-sample scores give "
                f"{value!r}; restore the run folder from a copy"
            )
