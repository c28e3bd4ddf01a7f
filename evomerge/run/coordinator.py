"""The coordinator's loop: ask, lease, journal, tell, until the budget is spent.

One process, one thread, one writer. The journal on disk is always a beginning of what has happened here, and nobody
outside hears of what is not in it: an `asked` line is on disk before its candidate is given out, a score file before
its `evaluated` line, that line before anything is shown. So whatever instant the process dies at, a replay of the
journal gives back a state that this process was in. What comes in at one time shares one fsync (`together`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from evomerge.cluster.types import Completed, Executor, Failed, Job
from evomerge.cluster.types import Event as Settled
from evomerge.cluster.types import Retried as LostAttempt
from evomerge.fitness.types import Minibatch, Split
from evomerge.recipe import Recipe
from evomerge.run.budget import Meter
from evomerge.run.commands import Inbox
from evomerge.run.events import (
    Asked,
    CandidateId,
    Evaluated,
    Finished,
    Paused,
    Reference,
    Resumed,
    Retried,
    Stopped,
)
from evomerge.run.finishing import unvalidated
from evomerge.run.journal import EventT, JournalWriter
from evomerge.run.observer import DRAINING, Ending, Observer, unobserved
from evomerge.run.open_jobs import FirstFailures, OpenJob, OpenJobs
from evomerge.run.outcomes import failed, measured, reused
from evomerge.run.problem import Problem
from evomerge.run.replay import ReplayState
from evomerge.run.same_documents import SameDocuments
from evomerge.run.scores import ScoreStore
from evomerge.run.steering import Steering
from evomerge.search.types import Candidate
from evomerge.seeds import derive
from evomerge.spaces.types import Genome

POLL_S = 0.5
"""Longest wait for a result before the loop looks at clocks and signals again."""
LOOK_S = 0.5
"""Shortest time between two calls of the observer, but for the first."""
MAX_AT_ONCE = 16
"""So many candidates at most share one fsync: the first of many should not wait for the last."""
MAX_REPEATS = 1000
"""So many proposals in a row that were scored before end a search: its space is exhausted."""


@dataclass(frozen=True, slots=True)
class _Leave:
    """Why nothing further is begun, and how the session ends."""

    reason: str
    ending: Ending = "paused"
    command: str = ""


class Coordinator:
    """Runs one search to its end, or until it is asked to drain; people steer it through an inbox.

    Args:
        problem: what is searched.
        replayed: the searcher and the state at the journal's end; both live on here.
        journal: the writer; the run's lease is held.
        scores: the run's score files.
        executor: where scoring runs.
        observer: hears how it goes.
        meter: measures the run against its budget.
        inbox: what people ask of it; left out: nothing.
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
        inbox: Inbox | None = None,
    ) -> None:
        self._problem = problem
        self._searcher = replayed.searcher
        self._state = replayed.state
        self._unfinished = replayed.open
        self._journal = journal
        self._scores = scores
        self._executor = executor
        self._observer = observer
        self._meter = meter
        self._open = OpenJobs()
        self._outbox: list[Job] | None = None
        """What is given out as soon as the journal has what happens now."""
        self._observed_s = float("-inf")
        self._waiting: list[tuple[str, Recipe, str]] = []
        self._repeats = 0
        self._leave: _Leave | None = None
        self._searching = True
        self._documents = SameDocuments(problem, replayed.state, scores)
        self._failures = FirstFailures(waiting=not self._state.worker_seconds)

        self._steering: Steering | None = None
        if inbox is not None:
            self._steering = Steering(
                inbox, self, problem, state=self._state, searcher=self._searcher, executor=executor, meter=meter
            )

    @property
    def is_draining(self) -> bool:
        """Whether `drain` was called."""
        return self._leave is not None

    def drain(self, reason: str, *, ending: Ending = "paused", command: str = "") -> None:
        """Ask for no further candidates, finish what is open, and end so; a stop overrides a pause.

        Args:
            reason: why, for people.
            ending: `paused` or `stopped`.
            command: id of the command that asks for it.
        """
        first = self._leave is None
        if self._leave is None or (ending == "stopped" and self._leave.ending != "stopped"):
            self._leave = _Leave(reason, ending, command)
        if first:
            self._observer({DRAINING: reason})

    @property
    def refuses_candidates(self) -> str | None:
        """Why no candidate can be injected now, or None."""
        if self._leave is not None:
            return "the run is being drained and begins nothing new; resume it, then inject the recipe"
        if not self._searching:
            return "the search is over and its finalists are being validated; inject the recipe into a new run"
        if self._meter.evaluations_left(self._state) <= self._open.num_candidates:
            return "the evaluations that are left are all being scored; raise the budget, then inject the recipe"
        return None

    def inject(self, genome: Genome, command: str) -> Candidate:
        """Make a candidate of a genome of the space that a person gave, and have it scored as the others are."""
        with self._journaling():
            candidate = self._searcher.adopt(genome)
            self._ask(candidate, injected=True, command=command)
        return candidate

    def run(self) -> Ending:
        """Run until the budget is spent, the searcher has finished, or `drain` was called.

        Raises:
            StorageError: when the disk refuses a write; nothing that was journaled is lost.
            EvomergeError: when scoring cannot work at all, for instance because no worker starts.
        """
        if self._journal.num_found:
            self.write(Resumed(pid=os.getpid(), host=socket.gethostname(), elapsed_s=self._meter.elapsed_s()))
        self._start_references()
        self._submit_references()
        with self._journaling():
            for candidate in self._unfinished:
                self._dispatch(candidate, self._state.asked[candidate.id].recipe_id)
        if self._steering is not None:
            self._steering.begin()
        self._repeats = self._trailing_repeats()
        why = self._search()
        self._searching = False
        if self._leave is None:
            self._validate()
        ending = self._end(why)
        if self._steering is not None:
            self._steering.end(ending)
        return ending

    def _end(self, why: str) -> Ending:
        """Journal how the session ends, and return it."""
        self._meter.hear(self._executor.status())
        elapsed_s, gpu_s = self._meter.elapsed_s(), self._meter.gpu_s()
        leave = self._leave
        if leave is None:
            self.write(Finished(reason=why, elapsed_s=elapsed_s, gpu_s=gpu_s))
            return "finished"
        event = Stopped if leave.ending == "stopped" else Paused
        self.write(event(reason=leave.reason, elapsed_s=elapsed_s, gpu_s=gpu_s, command=leave.command))
        return leave.ending

    def write(self, event: EventT) -> EventT:
        """Journal an event, then let the state know: the order that makes a replay equal to the run; return it."""
        event = self._journal.append(event)
        self._state.apply(event)
        return event

    @contextmanager
    def _journaling(self) -> Iterator[None]:
        """Journal with one fsync what happens within, then give out the jobs that came of it."""
        jobs = self._outbox = []
        try:
            with self._journal.together(self._scores.sync):
                yield
        finally:
            self._outbox = None
        for job in jobs:
            self._executor.submit(job)

    def _start_references(self) -> None:
        for name, recipe in self._problem.references().items():
            recipe_id = self._problem.identity(recipe)
            if name not in self._state.references:
                self.write(Reference(name=name, recipe_id=recipe_id, recipe=recipe.to_mapping()))
            if (name, "search") not in self._state.evaluations:
                self._waiting.append((name, recipe, recipe_id))

    def _submit_references(self) -> None:
        """Give out references while there is room; one that waits here need not be scored before a drain ends."""
        while self._waiting and self._executor.open_jobs < self._executor.capacity:
            self._submit(*self._waiting.pop(0), "search")

    def _trailing_repeats(self) -> int:
        """Return how many of the last proposals in a row were repeats, as the journal has it."""
        waiting = self._open.followers()
        count = 0
        for number in reversed(range(len(self._state.asked))):
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
            why = self._meter.spent(self._state) or self._searcher.finished
            if why is None and self._repeats >= MAX_REPEATS:
                why = f"the last {MAX_REPEATS} proposals had all been scored before"
            if self._leave is None:
                self._submit_references()
                if why is None:
                    self._refill()
            if not self._open and self._leave is not None:
                return why or "drained"
            if not self._open and self._failures:
                raise self._failures.hopeless()
            if not self._open and why is not None:
                return why
            self._settle()

    def _refill(self) -> None:
        """Ask for as many candidates as can be worked on at once and the budget still allows."""
        left = self._meter.evaluations_left(self._state) - self._open.num_candidates
        room = min(self._executor.capacity - self._executor.open_jobs, left)
        for begun in range(0, room, MAX_AT_ONCE):
            with self._journaling():
                for _ in range(min(MAX_AT_ONCE, room - begun)):
                    # One by one: a repeat is told at once, before the next is asked for, and the journal says so.
                    asked = self._searcher.ask(1)
                    if not asked:
                        return
                    self._ask(asked[0])

    def _ask(self, candidate: Candidate, *, injected: bool = False, command: str = "") -> None:
        """Journal a new candidate and give it out."""
        recipe_id = self._problem.identity(candidate.recipe)
        self.write(
            Asked(
                candidate=candidate.id,
                recipe_id=recipe_id,
                genome=candidate.genome,
                parents=candidate.parents,
                origin=candidate.origin,
                injected=injected,
                command=command,
            )
        )
        self._dispatch(candidate, recipe_id)

    def _dispatch(self, candidate: Candidate, recipe_id: str) -> None:
        """Give a candidate out, or settle it at once where its recipe has been scored before."""
        known = self._state.reusable(recipe_id, "search")
        if known is not None:
            self._repeats += 1
            self._record(reused(known, candidate.id), candidate)
            return
        scoring = self._open.of_recipe(recipe_id)
        if scoring is not None:
            self._repeats += 1
            scoring.followers.append(candidate)
            return
        self._repeats = 0
        self._submit(candidate.id, candidate.recipe, recipe_id, "search", candidate)

    def _submit(
        self, who: CandidateId, recipe: Recipe, recipe_id: str, split: Split, asked: Candidate | None = None
    ) -> None:
        job = OpenJob(candidate=who, recipe_id=recipe_id, split=split, asked=asked)
        self._open.add(job)
        size = self._problem.config.search.minibatch
        minibatch = None
        if asked is not None and size is not None:
            draw = derive(self._problem.config.search.seed, "minibatch", asked.generation)
            minibatch = Minibatch(documents=size, draw=draw)
        work = Job(key=job.key, recipe=recipe, split=split, minibatch=minibatch)
        if self._outbox is None:
            self._executor.submit(work)
        else:
            self._outbox.append(work)

    def _settle(self) -> None:
        """Wait a moment for results, journal them, and let the searcher hear them."""
        events = self._executor.wait(POLL_S) if self._open else ()
        with self._journaling():
            self._take(events)
        if self._steering is not None:
            self._steering.look()
        now = time.monotonic()
        if now - self._observed_s < LOOK_S:
            return
        self._observed_s = now
        status = self._executor.status()
        self._meter.hear(status)
        figures = {**self._searcher.status(), **status, "open": len(self._open)}
        self._observer(figures if self._leave is None else {**figures, DRAINING: self._leave.reason})

    def _take(self, events: Iterable[Settled]) -> None:
        for event in events:
            job = self._open[event.job.key]
            if isinstance(event, LostAttempt):
                self.write(
                    Retried(
                        candidate=job.candidate,
                        split=job.split,
                        attempt=event.attempt,
                        reason=event.reason,
                        worker=event.worker,
                    )
                )
                continue
            self._open.answered(event.job.key)
            if isinstance(event, Completed):
                for earlier, failure in self._failures.release():
                    self._close(earlier, failure)
            elif self._failures.keep(job, event):
                continue
            self._close(job, event)

    def _close(self, job: OpenJob, event: Completed | Failed) -> None:
        """Record the outcome of a job, and of the candidates with the same recipe that waited for it."""
        self._open.settle(job)
        outcome = self._record(self._evaluated(job, event), job.asked)
        for follower in job.followers:
            self._record(reused(outcome, follower.id), follower)

    def _evaluated(self, job: OpenJob, event: Completed | Failed) -> Evaluated:
        if isinstance(event, Failed):
            return failed(event, candidate=job.candidate, recipe_id=job.recipe_id)
        if job.asked is None or self._problem.config.search.minibatch is None:
            self._documents.check(event.evaluation)
        path = None if event.evaluation.infeasible else self._scores.write(event.evaluation, synced=False)
        return measured(
            self._problem.objectives,
            event,
            candidate=job.candidate,
            recipe_id=job.recipe_id,
            scores=path,
        )

    def _record(self, event: Evaluated, asked: Candidate | None) -> Evaluated:
        """Journal an outcome, then let the searcher hear it; return it as it was journaled."""
        gpus = 0.0 if event.reused_from is not None else self._meter.gpus_per_worker
        event = self.write(event.model_copy(update={"gpus": gpus, "gpu_s": round(self._meter.gpu_s(), 3)}))
        if asked is not None:
            self._searcher.tell(asked, self._state.outcome(event, self._scores))
        return event

    def _validate(self) -> None:
        """Score the finalists and the references on the validation split."""
        waiting = unvalidated(self._problem, self._state)
        while self._open or (waiting and self._leave is None):
            while waiting and self._leave is None and len(self._open) < self._executor.capacity:
                who, recipe = waiting.pop(0)
                self._submit(who, recipe, self._problem.identity(recipe), "validation")
            self._settle()
