"""Reading a run: status, front, one candidate, history. Nothing here writes: a run may be read while it runs.

`best` and `knee` are chosen on the validation split once the whole front has been scored there, before that
on the search split. The front, the hypervolume and the values in `status` are those of the search split, on
which every candidate was scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import StateError
from evomerge.fitness.types import SPLITS, Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run.budget import spending
from evomerge.run.config import BudgetConfig, RunConfig
from evomerge.run.events import CandidateId, Evaluated, Event, Started
from evomerge.run.folder import RunFolder
from evomerge.run.grams import stored_grams
from evomerge.run.journal import JournalReader
from evomerge.run.lease import is_held
from evomerge.run.replay import source_infos, space_of
from evomerge.run.state import RunState
from evomerge.search import Archive, scalarize
from evomerge.spaces import Space

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class History:
    """The search split's course: one row an evaluation, in the order of the journal. N rows, M objectives."""

    candidate: NDArray[np.int64]
    """Shape (N,)."""
    elapsed_s: NDArray[np.float64]
    """Seconds that coordinators had run, shape (N,)."""
    best: NDArray[np.float64]
    """Highest scalarised objective of a feasible candidate so far, NaN before the first; shape (N,)."""
    best_per_objective: NDArray[np.float64]
    """Highest value of each objective so far, NaN before the first; shape (N, M)."""
    hypervolume: NDArray[np.float64]
    """Of the front so far; shape (N,)."""


class Run:
    """A run as it stood when it was loaded; `refresh` reads what came since.

    Args:
        path: the run folder.
        clock: seconds since 1970; how long a running run has run depends on it.
        state: of the coordinator in this process, which keeps it up to date; left out: the journal is read.

    Raises:
        StateError: when it is not a run folder, or its journal is broken.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, state: RunState | None = None) -> None:
        self._folder = RunFolder.open(path)
        self._clock = clock
        self._config = self._folder.config()
        self._reader: JournalReader | None = None
        if state is None:
            self._reader = JournalReader(self._folder.journal)
            state = RunState(self._config.search.scalarize, self._reader.events)
        self._state = state
        self.refresh()

    def refresh(self) -> None:
        """Read the events that came since the last look.

        Raises:
            StateError: when the journal is broken.
        """
        # A coordinator that has only just begun has no journal yet.
        if self._reader is not None and self._folder.journal.exists():
            for event in self._reader.read():
                self._state.apply(event)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self._folder

    @property
    def config(self) -> RunConfig:
        """The configuration that the run started with; `budget` says what holds now."""
        return self._config

    @property
    def events(self) -> Sequence[Event]:
        """Every event that was read."""
        return tuple(self._state.since(0))

    @property
    def state(self) -> RunState:
        """The events, folded."""
        return self._state

    @property
    def budget(self) -> BudgetConfig:
        """The budget with every change that was journaled."""
        return self._config.budget.model_copy(update=self._state.budget_changes)

    @cached_property
    def space(self) -> Space:
        """What the run searches.

        Raises:
            StateError: before the run started.
        """
        started = self._started()
        return space_of(self._config, source_infos(started), stored_grams(self._folder, started))

    def archive(self, split: Split = "search") -> Archive:
        """Return the candidates that were scored on a split.

        Raises:
            StateError: before the run started.
        """
        self._started()
        return self._state.archives[split]

    def condition(self) -> str:
        """Return where the run stands: running, interrupted, paused, stopped or finished."""
        lifecycle = self._state.lifecycle
        if lifecycle in ("created", "running"):
            return "running" if is_held(self._folder.path) else "interrupted"
        return lifecycle

    def elapsed_s(self) -> float:
        """Return the seconds that coordinators have run, up to now where one runs."""
        elapsed, session = self._state.elapsed_s, self._state.session
        if session is None or self.condition() != "running":
            return elapsed
        start, before = session
        return max(elapsed, before + self._clock() - start)

    def status(self) -> Json:
        """Return what `status --json` prints.

        `evaluations.done` counts candidates with an outcome on the search split (reused scores are not
        counted), `failed` and `infeasible` those among them without a usable score, `running` those asked and
        still open while a coordinator runs. `best` has the highest value of each objective. `spent` is in the units of
        the budget; its cost is None where GPUs have no price. The busy share of each worker, and of all, is that of the
        seconds between its first evaluation and its last.
        """
        condition, elapsed_s = self.condition(), self.elapsed_s()
        archive = self._state.archives.get("search")
        share = self._state.busy.share()
        return {
            "run": self._folder.name,
            "state": condition,
            "evaluations": {
                "done": self._state.num_done,
                "failed": self._state.outcomes["failed"],
                "infeasible": self._state.outcomes["infeasible"],
                "running": len(self._state.open_ids) if condition == "running" else 0,
            },
            "best": self._best_values(archive),
            "hypervolume": archive.hypervolume() if archive else 0.0,
            "front_size": len(archive.front()) if archive else 0,
            "elapsed_s": round(elapsed_s, 3),
            "budget": self.budget.model_dump(mode="json"),
            "spent": spending(
                self.budget, evaluations=self._state.num_done, elapsed_s=elapsed_s, gpu_s=self._state.gpu_s
            ),
            "busy_share": None if share is None else round(share, 4),
            "workers": self._state.busy.table(),
        }

    @staticmethod
    def _best_values(archive: Archive | None) -> dict[str, float]:
        if archive is None:
            return {}
        winners = archive.best_per_objective()
        return {
            name: archive.entry(winners[name]).objectives[index]
            for index, name in enumerate(archive.objectives)
            if name in winners
        }

    def pareto(self, split: Split = "search") -> list[Json]:
        """Return the front over all feasible candidates of a split, by id, as `pareto --json` prints it."""
        archive = self._state.archives.get(split)
        if archive is None:
            return []
        evaluations = self._state.of_split(split)
        return [
            {
                "id": number,
                "recipe_id": evaluations[number].recipe_id,
                "objectives": measured(evaluations[number]),
                "split": split,
                "feasible": evaluations[number].state == "feasible",
            }
            for number in archive.front()
        ]

    def show(self, candidate: CandidateId) -> Json:
        """Return what `show --json` prints of a candidate, or of a reference (no genome, no parents).

        Raises:
            StateError: when the run has no such candidate.
        """
        known = self._known(candidate)
        asked = self._state.asked.get(candidate) if isinstance(candidate, int) else None
        return {
            "id": candidate,
            "recipe": self.recipe(candidate).to_mapping(),
            "recipe_id": known,
            "genome": None if asked is None else list(asked.genome),
            "evaluations": [_evaluation(event) for event in self._evaluations_of(candidate).values()],
            "parents": [] if asked is None else list(asked.parents),
        }

    def recipe(self, candidate: CandidateId) -> Recipe:
        """Return the recipe of a candidate or a reference.

        Raises:
            StateError: when the run has no such candidate.
        """
        self._known(candidate)
        if isinstance(candidate, int):
            return self.space.decode(self._state.asked[candidate].genome)
        return Recipe.from_mapping(self._state.references[candidate].recipe)

    def recipe_id(self, candidate: CandidateId) -> str:
        """Return the identity of a candidate's or a reference's recipe.

        Raises:
            StateError: when the run has no such candidate.
        """
        return self._known(candidate)

    def scores(self, candidate: CandidateId, split: Split = "search") -> Evaluation | None:
        """Return the per-sample scores of a candidate or a reference, checked; None where none were measured.

        Raises:
            StateError: when the run has no such candidate, or the file is missing or was changed.
        """
        self._known(candidate)
        event = self._state.evaluations.get((candidate, split))
        return None if event is None or event.scores is None else self._folder.scores.read(event.scores)

    def resolve(self, word: str) -> CandidateId:
        """Return the candidate that a person means: `best`, `knee`, a number, or the name of a reference.

        Raises:
            StateError: when there is none.
        """
        if word in ("best", "knee"):
            found = self.best() if word == "best" else self.knee()
            if found is None:
                raise StateError(f"{self._folder.path}: no feasible candidate yet, so there is no {word!r} one")
            return found
        candidate: CandidateId = int(word) if word.isascii() and word.isdigit() else word
        self._known(candidate)
        return candidate

    @property
    def selection_split(self) -> Split:
        """Where `best` and `knee` are chosen: validation, once the whole front was scored there."""
        if not self._state.archives:
            return "search"
        validation = self._state.archives["validation"]
        scored = {entry.id for entry in validation.entries}
        front = self._state.archives["search"].front()
        done = bool(front) and scored.issuperset(front) and bool(validation.front())
        return "validation" if done else "search"

    def best(self) -> int | None:
        """Return the feasible candidate with the highest scalarised objective (ties: lowest id), or None."""
        archive = self._state.archives.get(self.selection_split)
        return None if archive is None else archive.best()

    def knee(self) -> int | None:
        """Return the point of the front farthest from the line between the front's extremes, or None."""
        archive = self._state.archives.get(self.selection_split)
        return None if archive is None else archive.knee()

    def value(self, candidate: CandidateId, split: Split) -> float | None:
        """Return the scalarised objective of a candidate or a reference; None where it was not measured."""
        event = self._state.evaluations.get((candidate, split))
        if event is None or not event.objectives:
            return None
        return scalarize(self._config.search.scalarize, [event.objectives[name] for name in self._state.objectives])

    def compared(self) -> list[str]:
        """Return the references worth looking at: all but the coefficient sweep, and the sweep's best on search."""
        names = list(self._state.references)
        values = {name: self.value(name, "search") for name in names if name.startswith("coefficient:")}
        sweep = {name: value for name, value in values.items() if value is not None}
        others = [name for name in names if name not in values]
        return [*others, max(sweep, key=sweep.__getitem__)] if sweep else others

    def references(self) -> list[Json]:
        """Return what candidates are compared with: name, recipe identity, and objectives by split."""
        rows = []
        for name, reference in self._state.references.items():
            splits = {split: measured(event) for split, event in self._evaluations_of(name).items() if event.objectives}
            rows.append({"name": name, "recipe_id": reference.recipe_id, "objectives": splits})
        return rows

    def history(self) -> History:
        """Return the course of the search, for plots."""
        archive = self._state.archives.get("search")
        points = archive.history if archive else ()
        blank = (float("nan"),) * len(self._state.objectives)
        rows = [point.best_per_objective or blank for point in points]
        return History(
            candidate=np.array([point.id for point in points], dtype=np.int64),
            elapsed_s=np.array(self._state.timeline, dtype=np.float64),
            best=np.array([np.nan if point.best is None else point.best for point in points], dtype=np.float64),
            best_per_objective=np.array(rows, dtype=np.float64).reshape(len(rows), len(blank)),
            hypervolume=np.array([point.hypervolume for point in points], dtype=np.float64),
        )

    def _started(self) -> Started:
        if self._state.started is None:
            raise StateError(f"{self._folder.journal}: nothing was journaled yet; resume the run")
        return self._state.started

    def _evaluations_of(self, candidate: CandidateId) -> dict[Split, Evaluated]:
        found = {split: self._state.evaluations.get((candidate, split)) for split in SPLITS}
        return {split: event for split, event in found.items() if event is not None}

    def _known(self, candidate: CandidateId) -> str:
        """Return a candidate's recipe identity."""
        if isinstance(candidate, int) and candidate in self._state.asked:
            return self._state.asked[candidate].recipe_id
        if isinstance(candidate, str) and candidate in self._state.references:
            return self._state.references[candidate].recipe_id
        names = ", ".join(self._state.references) or "none"
        raise StateError(
            f"{self._folder.path}: no candidate {candidate!r}; give `best`, `knee`, a number below "
            f"{len(self._state.asked)} or a reference ({names})"
        )


def measured(event: Evaluated) -> dict[str, Json]:
    """Return an evaluation's objectives as JSON: mean, standard error and number of documents by name."""
    return {
        name: {"mean": mean, "stderr": event.stderr.get(name), "samples": event.samples.get(name, 0)}
        for name, mean in event.objectives.items()
    }


def _evaluation(event: Evaluated) -> Json:
    skipped = {"seq", "candidate", "recipe_id", "objectives", "stderr", "samples", "gpu_s"}
    rest = event.model_dump(mode="json", exclude=skipped)
    held = {"gpu_seconds": round(event.gpus * sum(event.seconds.values()), 3)}
    return {"split": rest.pop("split"), "state": rest.pop("state"), "objectives": measured(event), **rest, **held}


def load_run(path: Path | str) -> Run:
    """Read a run; never writes.

    Raises:
        StateError: when it is not a run folder, or its journal is broken.
    """
    return Run(Path(path))
