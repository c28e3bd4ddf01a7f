"""What a running coordinator does with the commands of people: each is journaled where it takes effect."""

from __future__ import annotations

from typing import Any, Protocol

from evomerge.cluster.types import Executor
from evomerge.documents import Document, did_you_mean
from evomerge.errors import ConfigError, EvomergeError, JournalError, StateError, StorageError
from evomerge.recipe import Recipe
from evomerge.run.budget import Meter, spending
from evomerge.run.commands import (
    Answer,
    ChangeBudget,
    Command,
    Drain,
    Hold,
    Inbox,
    Inject,
    Received,
    SetWorkers,
)
from evomerge.run.config import BudgetConfig, RunConfig
from evomerge.run.events import Budget, Event, Held, Workers
from evomerge.run.folder import config_data
from evomerge.run.observer import Ending
from evomerge.run.problem import Problem
from evomerge.run.state import RunState
from evomerge.search import Candidate, Steered
from evomerge.spaces import Genome

_ENDINGS: dict[str, Ending] = {"pause": "paused", "stop": "stopped"}


class Helm(Protocol):
    """What of a coordinator can be steered."""

    def write(self, event: Event) -> Event:
        """Journal an event, then let the state know; return it as it was journaled."""
        ...

    def drain(self, reason: str, *, ending: Ending = "paused", command: str = "") -> None:
        """Ask for no further candidates, finish what is open, and end so."""
        ...

    def inject(self, genome: Genome, command: str) -> Candidate:
        """Make a candidate of a genome, journal it, and have it scored."""
        ...

    @property
    def refuses_candidates(self) -> str | None:
        """Why no candidate can be added now, or None."""
        ...


class Steering:
    """Carries out the commands in an inbox, between two steps of the coordinator's loop.

    A command takes effect in one piece: what it does is journaled, with the command's id, before it is answered. So a
    crash in between does not repeat it: whoever resumes finds the id in the journal.

    Args:
        inbox: the run's commands.
        helm: the coordinator.
        problem: what is searched.
        state: where the run stands.
        searcher: who proposes.
        executor: where scoring runs.
        meter: measures the run against its budget.
    """

    def __init__(
        self,
        inbox: Inbox,
        helm: Helm,
        problem: Problem,
        *,
        state: RunState,
        searcher: Steered,
        executor: Executor,
        meter: Meter,
    ) -> None:
        self._inbox = inbox
        self._helm = helm
        self._problem = problem
        self._state = state
        self._searcher = searcher
        self._executor = executor
        self._meter = meter
        self._leaving: list[str] = []

    def begin(self) -> None:
        """Carry out what waits, but for a pause or a stop of an earlier session: resuming has answered these."""
        for received in self._inbox.look(now=True):
            if isinstance(received.command, Drain) and received.sent_ns < self._inbox.began_ns:
                self._refuse(received, StateError("the run was resumed after this was asked; ask again"))
            else:
                self._attend(received)

    def look(self) -> None:
        """Carry out what has been asked since the last look."""
        for received in self._inbox.look():
            self._attend(received)

    def end(self, ending: Ending) -> None:
        """Answer those who asked for the end, and refuse what came too late."""
        done = self._state.num_done
        facts = {"state": ending, "evaluations": done, "elapsed_s": round(self._state.elapsed_s, 3)}
        for number in self._leaving:
            self._inbox.answer(number, Answer(done=True, text=f"{ending} after {done} evaluations", facts=facts))
        for received in self._inbox.look(now=True):
            self._refuse(received, StateError(f"the run is {ending}; it was too late for this"))

    def _attend(self, received: Received) -> None:
        number, command = received.id, received.command
        if command is None:
            self._refuse(received, ConfigError(f"the command {number} is damaged: {received.fault}; send it again"))
        elif number in self._state.commands:
            self._inbox.answer(number, Answer(done=True, text="this was done before the coordinator started anew"))
        elif isinstance(command, Drain):
            self._leaving.append(number)
            self._helm.drain(f"{command.command} command", ending=_ENDINGS[command.command], command=number)
        else:
            try:
                answer = self._carry_out(number, command)
            except (StorageError, JournalError):
                raise  # the journal lacks what may have happened: the session is over
            except EvomergeError as error:
                answer = Answer.refusal(error)
            self._inbox.answer(number, answer)

    def _refuse(self, received: Received, error: EvomergeError) -> None:
        self._inbox.answer(received.id, Answer.refusal(error))

    def _carry_out(self, number: str, command: Command) -> Answer:
        match command:
            case ChangeBudget():
                return self._change_budget(number, command.changes)
            case SetWorkers():
                return self._set_workers(number, command.workers)
            case Inject():
                return self._inject(number, command.recipe)
            case Hold():
                return self._hold(number, command)
            case Drain():
                raise StateError("this is answered when the run ends")

    def _change_budget(self, number: str, changes: dict[str, Any]) -> Answer:
        config = changed_budget(self._problem.config, self._meter.budget, changes)
        self._helm.write(Budget(changes={key: getattr(config, key) for key in changes}, command=number))
        self._meter.budget = config
        spent = spending(
            config, evaluations=self._state.num_done, elapsed_s=self._meter.elapsed_s(), gpu_s=self._meter.gpu_s()
        )
        reached = self._meter.spent(self._state)
        named = ", ".join(f"{key} {_figure(getattr(config, key))}" for key in changes)
        text = f"budget: {named}" + ("" if reached is None else f"; {reached}, so the run ends")
        return Answer(done=True, text=text, facts={"budget": config.model_dump(mode="json"), "spent": spent})

    def _set_workers(self, number: str, workers: int) -> Answer:
        self._executor.resize(workers)
        self._helm.write(Workers(workers=workers, command=number))
        return Answer(done=True, text=f"workers: {workers} from now on", facts={"workers": workers})

    def _inject(self, number: str, recipe: dict[str, Any]) -> Answer:
        refused = self._helm.refuses_candidates
        if refused is not None:
            raise StateError(refused)
        genome = self._problem.space.encode(self._problem.pinned(Recipe.from_mapping(recipe)))
        candidate = self._helm.inject(genome, number)
        asked = self._state.asked[candidate.id]
        known = self._state.evaluations.get((candidate.id, "search"))
        text = f"candidate {candidate.id} is being scored"
        if known is not None:
            text = f"candidate {candidate.id} has the recipe of {known.reused_from}, which has been scored"
        return Answer(done=True, text=text, facts={"candidate": candidate.id, "recipe_id": asked.recipe_id})

    def _hold(self, number: str, command: Hold) -> Answer:
        source, weight = command.source, command.weight
        known = self._problem.config.sources
        if source not in known:
            raise ConfigError(f"{source!r} is not a source of this run{did_you_mean(source, known)}")
        if weight is None and source not in self._searcher.held:
            raise StateError(f"{source!r} is not held, so there is nothing to free")
        self._searcher.hold(source, weight)
        self._helm.write(Held(source=source, weight=weight, command=number))
        what = "is free again" if weight is None else "is banned" if weight == 0 else f"is held at {weight:g}"
        text = f"{source} {what}, in every candidate from now on"
        return Answer(done=True, text=text, facts={"held": dict(self._searcher.held)})


def changed_budget(config: RunConfig, budget: BudgetConfig, changes: dict[str, Any]) -> BudgetConfig:
    """Return a budget with other limits, checked as in the search file.

    Args:
        config: of the run.
        budget: the limits that hold now.
        changes: limits by key.

    Raises:
        ConfigError: for a key that does not exist, or a wrong value.
    """
    data = config_data(config)
    data["budget"] = {**budget.model_dump(mode="json"), **changes}
    return Document(data=data, name="", lines={}).parse(RunConfig).budget


def steered_config(config: RunConfig, state: RunState) -> RunConfig:
    """Return a run's configuration with the budget and the number of workers that people gave it since it started."""
    update: dict[str, Any] = {"budget": config.budget.model_copy(update=state.budget_changes)}
    if state.workers is not None:
        update["executor"] = config.executor.model_copy(update={"workers": state.workers})
    return config.model_copy(update=update)


def _figure(value: float | None) -> str:
    return "unlimited" if value is None else f"{value:g}"
