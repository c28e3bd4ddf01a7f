"""What a journal's events come to: the state of a run, folded event by event.

The coordinator applies each event after it is journaled, a resume and every view apply those that were: one
rule for all, so that a resumed run and a view cannot differ from the run itself. What grows with the run is kept
small: figures, and the places of events in the journal, which has the rest.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from evomerge.errors import StateError
from evomerge.fitness.types import SPLITS, Split
from evomerge.run.busy import BusyWorkers
from evomerge.run.events import (
    Asked,
    Budget,
    CandidateId,
    Evaluated,
    Event,
    Finished,
    Held,
    Paused,
    Reference,
    Resumed,
    Retried,
    Started,
    Stopped,
    Workers,
)
from evomerge.run.recall import Evaluations, Recall
from evomerge.run.scores import ScoreStore
from evomerge.search import Archive, HistoryPoint, Outcome, Scalarize
from evomerge.search.types import State

Lifecycle = Literal["created", "running", "paused", "stopped", "finished"]
"""What the last event of that kind says; whether a coordinator is really there, the lease tells."""


class RunState:
    """The state of a run after the events that were applied.

    Args:
        scalarize: how `best` and the history see several objectives.
        log: where the events that are applied can be looked up, from the first on; left out: they are kept here.
    """

    def __init__(self, scalarize: Scalarize = "mean", log: Sequence[Event] | None = None) -> None:
        self._scalarize = scalarize
        self._kept: list[Event] = []
        self._log = self._kept if log is None else log
        self._num_applied = 0
        self.started: Started | None = None
        self.asked: Recall[int, Asked] = Recall(self._log)
        """Every candidate, in the order of asking."""
        self.references: dict[str, Reference] = {}
        self._of_split: dict[Split, Recall[CandidateId, Evaluated]] = {split: Recall(self._log) for split in SPLITS}
        self.evaluations = Evaluations(self._of_split)
        """Every outcome, in the order of the journal."""
        self.lost_attempts: dict[tuple[CandidateId, Split], int] = {}
        """How many attempts of a job were lost."""
        self.archives: dict[Split, Archive] = {}
        """Candidates (no references) by split; one with the same recipe as another is not listed again."""
        self.timeline = array("d")
        """Elapsed seconds at each entry of the search archive."""
        self.budget_changes: dict[str, float | int | None] = {}
        self.workers: int | None = None
        """How many workers a person wanted last; None: as many as the search file says."""
        self.held: dict[str, float] = {}
        """Weights of sources that are pinned, by alias."""
        self.commands: set[str] = set()
        """Ids of the commands that took effect."""
        self.lifecycle: Lifecycle = "created"
        self.reason = ""
        """Why the run was paused, stopped or finished."""
        self.num_done = 0
        """Candidates evaluated on the search split, whatever came out; reused scores are not counted."""
        self.num_stagnant = 0
        """Of these, those since the best scalarised objective or the hypervolume last grew."""
        self.outcomes: Counter[State] = Counter()
        """The same candidates, by what came out."""
        self.busy = BusyWorkers()
        self.worker_seconds = 0.0
        """Seconds that workers spent on evaluations, on every split."""
        self.gpu_s = 0.0
        """GPU-seconds that workers had held by the last event that says so."""
        self.seq = 0
        self._scored: dict[bytes, CandidateId] = {}
        """Who had the first outcome of a recipe on a split."""
        self._listed: set[bytes] = set()
        """Where that was a reference: what a candidate has been listed with since."""
        self._open: dict[int, str] = {}
        """Candidate -> its recipe's identity."""
        self._elapsed_s = 0.0
        self._session: tuple[float, float] | None = None

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in order; empty before the run started."""
        return self.started.objectives if self.started else ()

    @property
    def archive(self) -> Archive:
        """The archive of the search split.

        Raises:
            StateError: before the run started.
        """
        if not self.archives:
            raise StateError("the journal is empty: nothing was searched yet; resume the run")
        return self.archives["search"]

    @property
    def best(self) -> float | None:
        """Highest scalarised objective of a feasible candidate on the search split; None before the first."""
        latest = self.archive.latest
        return None if latest is None else latest.best

    @property
    def open_ids(self) -> tuple[int, ...]:
        """Candidates that were asked and have no outcome on the search split, in the order of asking."""
        return tuple(self._open)

    @property
    def elapsed_s(self) -> float:
        """Seconds that coordinators ran, up to the last event; time between them does not count."""
        return self._elapsed_s

    @property
    def session(self) -> tuple[float, float] | None:
        """When the running or interrupted coordinator began (seconds since 1970), and what elapsed before.

        None where none runs.
        """
        return self._session

    def since(self, place: int) -> Iterator[Event]:
        """Yield the events after the first `place` ones."""
        return (self._log[index] for index in range(place, self._num_applied))

    def reusable(self, recipe_id: str, split: Split) -> Evaluated | None:
        """Return the first outcome of an equal recipe on a split (a failed one does not count), or None."""
        owner = self._scored.get(_scored_key(recipe_id, split))
        return None if owner is None else self._of_split[split][owner]

    def of_split(self, split: Split) -> Mapping[CandidateId, Evaluated]:
        """Return the outcomes on one split, in the order of the journal."""
        return self._of_split[split]

    def outcome(self, event: Evaluated, store: ScoreStore | None = None) -> Outcome:
        """Return an evaluation as a searcher hears it.

        Args:
            event: a journaled evaluation on the search split.
            store: where the per-sample scores lie, read when they are looked at; None: without them.
        """
        samples = store.samples(event.scores) if store is not None and event.scores is not None else {}
        return Outcome(state=event.state, objectives=self._values(event), violation=event.violation, samples=samples)

    def apply(self, event: Event) -> None:
        """Take in the next event.

        Raises:
            StateError: when it contradicts those before it; the text names its line.
        """
        if self.started is None and not isinstance(event, Started):
            raise self._fault(event, "the journal does not begin with `started`")
        match event:
            case Started():
                self._start(event)
            case Asked():
                self._ask(event)
            case Evaluated():
                self._evaluate(event)
            case Reference():
                if event.name in self.references:
                    raise self._fault(event, f"the reference {event.name!r} stands twice")
                self.references[event.name] = event
            case Retried():
                job = (event.candidate, event.split)
                self.lost_attempts[job] = self.lost_attempts.get(job, 0) + 1
                self._tick(event)
            case Budget() | Workers() | Held():
                self._steer(event)
            case Resumed():
                self.lifecycle, self.reason = "running", ""
                self._elapsed_s = event.elapsed_s
                self._session = (event.timestamp, event.elapsed_s)
            case Paused() | Stopped() | Finished():
                self._leave(event)
            case _:
                pass  # an export changes nothing
        self._note(event)

    def _note(self, event: Event) -> None:
        """Count an event that was applied, and keep it where no log does."""
        if self._log is self._kept:
            self._kept.append(event)
        self._num_applied += 1
        self.seq = event.seq
        if command := getattr(event, "command", ""):
            self.commands.add(command)

    def _start(self, event: Started) -> None:
        if self.started is not None:
            raise self._fault(event, "the run started already")
        self.started = event
        self.lifecycle = "running"
        self._session = (event.timestamp, 0.0)
        self.archives = {split: Archive(event.objectives, scalarize=self._scalarize) for split in SPLITS}

    def _steer(self, event: Budget | Workers | Held) -> None:
        if isinstance(event, Budget):
            self.budget_changes.update(event.changes)
        elif isinstance(event, Workers):
            self.workers = event.workers
        elif event.weight is None:
            self.held.pop(event.source, None)
        else:
            self.held[event.source] = event.weight

    def _ask(self, event: Asked) -> None:
        if event.candidate != len(self.asked):
            raise self._fault(event, f"asked candidate {event.candidate}, expected {len(self.asked)}")
        self.asked.put(event.candidate, self._num_applied)
        self._open[event.candidate] = event.recipe_id
        self._tick(event)

    def _evaluate(self, event: Evaluated) -> None:
        owner = event.candidate
        known = self._recipe_of(owner)
        if known is None:
            raise self._fault(event, f"candidate {owner!r} was evaluated but never asked")
        if known != event.recipe_id:
            raise self._fault(event, f"candidate {owner!r} was evaluated with another recipe than it was asked with")
        if owner in self._of_split[event.split]:
            raise self._fault(event, f"candidate {owner!r} was evaluated twice on the {event.split} split")
        self._check_objectives(event)
        self._of_split[event.split].put(owner, self._num_applied)
        if event.reused_from is None:
            self.worker_seconds += sum(event.seconds.values())
        self.gpu_s = max(self.gpu_s, event.gpu_s)
        if event.split == "search":
            self._tick(event)
        self.busy.add(event, self._elapsed_s)
        if isinstance(owner, int):
            self._close(owner, event)
        if event.state != "failed":
            self._scored.setdefault(_scored_key(event.recipe_id, event.split), owner)

    def _recipe_of(self, owner: CandidateId) -> str | None:
        """Return the identity of the recipe that a candidate was asked with, or of a reference; None: there is none."""
        if isinstance(owner, str):
            return self.references[owner].recipe_id if owner in self.references else None
        if owner in self._open:
            return self._open[owner]
        return self.asked[owner].recipe_id if owner in self.asked else None

    def _close(self, candidate: int, event: Evaluated) -> None:
        archive = self.archives[event.split]
        before = archive.latest
        if not self._is_listed(event):
            errors = tuple(event.stderr.get(name) or 0.0 for name in self.objectives if event.objectives)
            archive.add(candidate, self._values(event), errors, feasible=event.state == "feasible")
            if event.split == "search":
                self.timeline.append(self._elapsed_s)
        if event.split != "search":
            return
        self._open.pop(candidate, None)
        if event.reused_from is None:
            self.num_done += 1
            self.num_stagnant += 1
            self.outcomes[event.state] += 1
        if _has_grown(before, archive.latest):
            self.num_stagnant = 0

    def _is_listed(self, event: Evaluated) -> bool:
        """Tell whether a candidate of the same recipe is in the archive, where this one comes now if there is none."""
        key = _scored_key(event.recipe_id, event.split)
        first = self._scored.get(key)
        if isinstance(first, int) or key in self._listed:
            return True
        if isinstance(first, str) and event.state != "failed":
            self._listed.add(key)
        return False

    def _check_objectives(self, event: Evaluated) -> None:
        if set(event.objectives) == set(self.objectives):
            return
        if event.state == "feasible" or event.objectives:
            raise self._fault(event, f"objectives {sorted(event.objectives)}, expected {sorted(self.objectives)}")

    def _values(self, event: Evaluated) -> tuple[float, ...]:
        return tuple(event.objectives[name] for name in self.objectives) if event.objectives else ()

    def _leave(self, event: Paused | Stopped | Finished) -> None:
        states: Mapping[type[Event], Lifecycle] = {Paused: "paused", Stopped: "stopped", Finished: "finished"}
        self.lifecycle, self.reason = states[type(event)], event.reason
        self._elapsed_s = event.elapsed_s
        self.gpu_s = max(self.gpu_s, event.gpu_s)
        self._session = None

    def _tick(self, event: Event) -> None:
        """Let the elapsed time reach an event; a system clock that is set back does not turn it back."""
        if self._session is not None:
            start, before = self._session
            self._elapsed_s = max(self._elapsed_s, before + event.timestamp - start)

    @staticmethod
    def _fault(event: Event, what: str) -> StateError:
        return StateError(f"journal line {event.seq}: {what}; restore the run folder from a copy")


def _scored_key(recipe_id: str, split: Split) -> bytes:
    """Return 128 bits that stand for a recipe on a split: less memory than its identity, and as hard to meet twice."""
    return hashlib.blake2b(f"{split}/{recipe_id}".encode(), digest_size=16).digest()


def _has_grown(before: HistoryPoint | None, after: HistoryPoint | None) -> bool:
    """Tell whether the best or the hypervolume rose; a front's volume may differ by rounding alone."""
    if after is None or after.best is None:
        return False
    if before is None or before.best is None:
        return True
    return after.best > before.best or after.hypervolume > before.hypervolume * (1 + 1e-12)


def fold(events: Sequence[Event], scalarize: Scalarize = "mean") -> RunState:
    """Return the state after a journal's events.

    Raises:
        StateError: when they contradict each other.
    """
    state = RunState(scalarize)
    for event in events:
        state.apply(event)
    return state
