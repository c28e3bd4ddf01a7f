"""The coordinator's loop: ask, lease, journal, tell, until the budget is spent.

One process, one thread, one writer. The journal is written before anything that depends on it happens: an `asked`
line before its candidate is given out, a score file before its `evaluated` line, that line before the searcher hears
it. Whatever instant the process dies at, a replay of the journal gives back exactly this state.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from evomerge.cluster.types import Completed, Executor, Failed, Job
from evomerge.cluster.types import Retried as LostAttempt
from evomerge.errors import EvaluationError, StateError
from evomerge.fitness.types import Evaluation, Minibatch, Split
from evomerge.recipe import Recipe
from evomerge.run.budget import Meter
from evomerge.run.events import Asked, CandidateId, Evaluated, Event, Finished, Paused, Reference, Resumed, Retried
from evomerge.run.journal import JournalWriter
from evomerge.run.outcomes import measured, reused
from evomerge.run.problem import Problem
from evomerge.run.replay import ReplayState
from evomerge.run.scores import ScoreStore
from evomerge.search import Archive, Scalarize, scalarize
from evomerge.search.types import Candidate
from evomerge.seeds import derive

Ending = Literal["finished", "paused"]
POLL_S = 0.5
"""Longest wait for a result before the loop looks at clocks and signals again."""
MAX_REPEATS = 1000
"""So many proposals in a row that were scored before end a search: its space is exhausted."""
DRAINING = "draining"
"""The figure that tells observers why the coordinator drains, while it does."""
MAX_FAILED_STARTS = 3
"""So many failures before anything was scored end a session: the set-up is broken, not the recipes."""


class Observer(Protocol):
    """Hears, about twice a second, how the coordinator is doing; what is journaled it reads in the journal."""

    def __call__(self, figures: Mapping[str, float | int | str]) -> None:
        """Show the figures of searcher and executor; `draining` among them says why no more is begun.

        When a drain begins it is called at once with that figure alone, in the midst of whatever a signal
        interrupted: it may then write to a descriptor, and should do nothing else.
        """
        ...


def unobserved(figures: Mapping[str, float | int | str]) -> None:
    """Show nothing."""
    del figures


@dataclass(slots=True)
class _Open:
    """A job that was submitted and is not settled."""

    candidate: CandidateId
    recipe_id: str
    split: Split
    asked: Candidate | None = None
    """The searched candidate, where it is one and is scored for the search."""
    followers: list[Candidate] = field(default_factory=list)
    """Candidates with the same recipe that were asked while it was being scored."""


class Coordinator:
    """Runs one search to its end, or until it is asked to drain.

    Args:
        problem: what is searched.
        replayed: the searcher and the state at the journal's end; both live on here.
        journal: the writer; the run's lease is held.
        scores: the run's score files.
        executor: where scoring runs.
        observer: hears how it goes.
        meter: measures the run against its budget.
    """

    def __init__(
        self,
        problem: Problem,
        replayed: ReplayState,
        *,
        journal: JournalWriter,
        scores: ScoreStore,
        executor: Executor,
        meter: Meter,
        observer: Observer = unobserved,
    ) -> None:
        self._problem = problem
        self._searcher = replayed.searcher
        self._state = replayed.state
        self._candidates = replayed.candidates
        self._journal = journal
        self._scores = scores
        self._executor = executor
        self._observer = observer
        self._meter = meter
        self._open: dict[str, _Open] = {}
        self._waiting: list[tuple[str, Recipe, str]] = []
        self._repeats = 0
        self._draining: str | None = None
        self._documents: dict[Split, Mapping[str, tuple[str, ...]]] = {}
        self._held: list[tuple[_Open, Failed]] | None = [] if not self._state.worker_seconds else None

    @property
    def is_draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining is not None

    def drain(self, reason: str) -> None:
        """Ask for no further candidates, finish what is open, and pause."""
        if self._draining is None:
            self._draining = reason
            self._observer({DRAINING: reason})

    def run(self) -> Ending:
        """Run until the budget is spent, the searcher has finished, or `drain` was called.

        Raises:
            StorageError: when the disk refuses a write; nothing that was journaled is lost.
            EvomergeError: when scoring cannot work at all, for instance because no worker starts.
        """
        if self._journal.events:
            self._write(Resumed(pid=os.getpid(), host=socket.gethostname(), elapsed_s=self._meter.elapsed_s()))
        self._start_references()
        self._submit_references()
        for number in self._state.open_ids:
            self._dispatch(self._candidates[number])
        self._repeats = self._trailing_repeats()
        why = self._search()
        if self._draining is None:
            self._validate()
        if self._draining is not None:
            self._write(Paused(reason=self._draining, elapsed_s=self._meter.elapsed_s()))
            return "paused"
        self._write(Finished(reason=why, elapsed_s=self._meter.elapsed_s()))
        return "finished"

    def _write(self, event: Event) -> None:
        """Journal an event, then let the state know: the order that makes a replay equal to the run."""
        self._state.apply(self._journal.append(event))

    def _start_references(self) -> None:
        for name, recipe in self._problem.references().items():
            recipe_id = self._problem.identity(recipe)
            if name not in self._state.references:
                self._write(Reference(name=name, recipe_id=recipe_id, recipe=recipe.to_mapping()))
            if (name, "search") not in self._state.evaluations:
                self._waiting.append((name, recipe, recipe_id))

    def _submit_references(self) -> None:
        """Give out references while there is room; one that waits here need not be scored before a drain ends."""
        while self._waiting and self._executor.open_jobs < self._executor.capacity:
            self._submit(*self._waiting.pop(0), "search")

    def _trailing_repeats(self) -> int:
        """Return how many of the last proposals in a row were repeats, as the journal has it."""
        waiting = {follower.id for job in self._open.values() for follower in job.followers}
        count = 0
        for number in reversed(self._state.asked):
            event = self._state.evaluations.get((number, "search"))
            if number not in waiting and (event is None or event.reused_from is None):
                break
            count += 1
        return count

    def _search(self) -> str:
        """Ask and tell until there is a reason to end; return it.

        Raises:
            EvaluationError: when nothing can be scored.
        """
        while True:
            why = self._meter.spent(self._state) or self._target_reached() or self._searcher.finished
            if why is None and self._repeats >= MAX_REPEATS:
                why = f"the last {MAX_REPEATS} proposals had all been scored before"
            if self._draining is None:
                self._submit_references()
                if why is None:
                    self._refill()
            if not self._open and self._draining is not None:
                return why or "drained"
            if not self._open and self._held:
                raise self._hopeless()
            if not self._open and why is not None:
                return why
            self._settle()

    def _refill(self) -> None:
        """Ask for as many candidates as can be worked on at once and the budget still allows."""
        in_search = sum(1 for job in self._open.values() if job.asked is not None)
        in_search += sum(1 for job, _ in self._held or () if job.asked is not None)
        room = min(
            self._executor.capacity - self._executor.open_jobs, self._meter.evaluations_left(self._state) - in_search
        )
        if room <= 0:
            return
        for _ in range(room):
            # One by one: a repeat is told at once, before the next is asked for, and the journal says so.
            asked = self._searcher.ask(1)
            if not asked:
                return
            candidate = asked[0]
            self._candidates[candidate.id] = candidate
            self._write(
                Asked(
                    candidate=candidate.id,
                    recipe_id=self._problem.identity(candidate.recipe),
                    genome=candidate.genome,
                    parents=candidate.parents,
                    origin=candidate.origin,
                )
            )
            self._dispatch(candidate)

    def _dispatch(self, candidate: Candidate) -> None:
        """Give a candidate out, or settle it at once where its recipe has been scored before."""
        recipe_id = self._problem.identity(candidate.recipe)
        known = self._state.reusable(recipe_id, "search")
        if known is not None:
            self._repeats += 1
            self._record(reused(known, candidate.id), candidate)
            return
        for job in self._open.values():
            if job.recipe_id == recipe_id and job.split == "search":
                self._repeats += 1
                job.followers.append(candidate)
                return
        self._repeats = 0
        self._submit(candidate.id, candidate.recipe, recipe_id, "search", candidate)

    def _submit(
        self, who: CandidateId, recipe: Recipe, recipe_id: str, split: Split, asked: Candidate | None = None
    ) -> None:
        key = f"{who}/{split}"
        self._open[key] = _Open(candidate=who, recipe_id=recipe_id, split=split, asked=asked)
        size = self._problem.config.search.minibatch
        minibatch = None
        if asked is not None and size is not None:
            draw = derive(self._problem.config.search.seed, "minibatch", asked.generation)
            minibatch = Minibatch(documents=size, draw=draw)
        self._executor.submit(Job(key=key, recipe=recipe, split=split, minibatch=minibatch))

    def _settle(self) -> None:
        """Wait a moment for results, journal them, and let the searcher hear them."""
        for event in self._executor.wait(POLL_S) if self._open else ():
            job = self._open[event.job.key]
            if isinstance(event, LostAttempt):
                self._write(
                    Retried(
                        candidate=job.candidate,
                        split=job.split,
                        attempt=event.attempt,
                        reason=event.reason,
                        worker=event.worker,
                    )
                )
                continue
            del self._open[event.job.key]
            if isinstance(event, Completed):
                self._settle_held()
            elif self._held is not None:
                self._hold(job, event)
                continue
            self._close(job, event)
        figures = {**self._searcher.status(), **self._executor.status(), "open": len(self._open)}
        self._observer(figures if self._draining is None else {**figures, DRAINING: self._draining})

    def _close(self, job: _Open, event: Completed | Failed) -> None:
        """Record the outcome of a job, and of the candidates with the same recipe that waited for it."""
        self._record(self._evaluated(job, event), job.asked)
        for follower in job.followers:
            self._record(reused(self._state.evaluations[job.candidate, "search"], follower.id), follower)

    def _hold(self, job: _Open, event: Failed) -> None:
        """Keep a failure back while nothing has been scored: it may be the set-up's fault, and would then come again.

        Raises:
            EvaluationError: when too many failed; none of them is journaled, so a mended set-up scores them again.
        """
        if self._held is None:
            return
        self._held.append((job, event))
        if len(self._held) >= MAX_FAILED_STARTS:
            raise self._hopeless()

    def _hopeless(self) -> EvaluationError:
        reason = self._held[-1][1].reason if self._held else "no worker answered"
        return EvaluationError(f"nothing could be scored: {reason}; nothing is lost, mend the cause and resume the run")

    def _settle_held(self) -> None:
        """Record the failures that were kept back: something was scored, so they are their recipes' own."""
        held, self._held = self._held, None
        for job, event in held or ():
            self._close(job, event)

    def _evaluated(self, job: _Open, event: Completed | Failed) -> Evaluated:
        if isinstance(event, Failed):
            return Evaluated(
                candidate=job.candidate,
                recipe_id=job.recipe_id,
                split=job.split,
                state="failed",
                reason=f"{event.kind}: {event.reason}",
                attempt=event.attempt,
            )
        if job.asked is None or self._problem.config.search.minibatch is None:
            self._check_documents(event.evaluation)
        path = None if event.evaluation.infeasible else self._scores.write(event.evaluation)
        return measured(
            self._problem.objectives,
            event,
            candidate=job.candidate,
            recipe_id=job.recipe_id,
            scores=path,
        )

    def _check_documents(self, evaluation: Evaluation) -> None:
        """Refuse documents that are not those of the scores before: a suite that was edited is another benchmark.

        Raises:
            StateError: naming the split.
        """
        split = evaluation.split
        if not evaluation.documents:
            return
        if split not in self._documents:
            first = self._first_scores(split)
            self._documents[split] = evaluation.documents if first is None else self._scores.read(first).documents
        if self._documents[split] != evaluation.documents:
            raise StateError(
                f"{self._problem.suite.path}: the documents of the {split} split have changed since the run started; "
                "restore the suite and its data, or start a new run"
            )

    def _first_scores(self, split: Split) -> str | None:
        """Return the first scores of a split that are not those of a minibatch."""
        sampled = split == "search" and self._problem.config.search.minibatch is not None
        outcomes = self._state.of_split(split).items()
        whole = (event.scores for who, event in outcomes if event.scores and not (sampled and isinstance(who, int)))
        return next(whole, None)

    def _record(self, event: Evaluated, asked: Candidate | None) -> None:
        """Journal an outcome, then let the searcher hear it."""
        self._write(event)
        if asked is not None:
            self._searcher.tell(asked, self._state.outcome(event, self._scores))

    def _target_reached(self) -> str | None:
        target = self._problem.config.budget.target
        best = self._state.archive.best()
        if target is None or best is None:
            return None
        value = scalarize(self._problem.config.search.scalarize, self._state.archive.entry(best).objectives)
        return f"the target {target:g} was reached" if value >= target else None

    def _validate(self) -> None:
        """Score the finalists and the references on the validation split, whose scores choose `best`."""
        if not self._problem.has_split("validation"):
            return
        rule = self._problem.config.search.scalarize
        recipes: dict[CandidateId, Recipe] = dict(self._problem.references().items())
        for number in finalists(self._state.archive, rule, self._problem.config.finalists):
            recipes[number] = self._candidates[number].recipe
        waiting = [
            (who, recipe) for who, recipe in recipes.items() if (who, "validation") not in self._state.evaluations
        ]
        while self._open or (waiting and self._draining is None):
            while waiting and self._draining is None and len(self._open) < self._executor.capacity:
                who, recipe = waiting.pop(0)
                self._submit(who, recipe, self._problem.identity(recipe), "validation")
            self._settle()


def finalists(archive: Archive, rule: Scalarize, count: int) -> tuple[int, ...]:
    """Return the ids that are scored on the validation split: the front and the best by scalarised objective."""
    ranked = sorted(
        (entry for entry in archive.entries if entry.feasible),
        key=lambda entry: (-scalarize(rule, entry.objectives), entry.id),
    )
    return tuple(sorted({*archive.front(), *(entry.id for entry in ranked[:count])}))
