"""The events of a journal: what each kind of line says, and how it becomes a line.

A line is the event's kind (`event`), its keys, and three that the writer stamps: `seq` (the line's number,
from 1), `time` (ISO 8601, UTC) and `checksum`. The keys below are an interface: programs outside evomerge
read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationError

from evomerge.documents import StrictModel, did_you_mean
from evomerge.fitness.types import Split
from evomerge.search.types import State
from evomerge.spaces.types import Value

JOURNAL_VERSION = 1
"""Version of the schema of the lines; a change that an older reader would misread raises it."""

CandidateId = int | str
"""A searched candidate's number, or the name of a reference, for instance `parent:math`."""


def _printable(value: Any) -> Any:
    """Replace lone surrogates (from undecodable file names in error texts), which are not Unicode text."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_printable)]
"""Text from outside: names, reasons."""


class Event(StrictModel):
    """What every event carries; the writer stamps these, a new event leaves them out."""

    kind: ClassVar[str] = ""

    seq: int = Field(default=0, ge=0)
    """The line's number, from 1; 0 while the event is not journaled."""
    time: str = ""
    """When it was journaled, ISO 8601, UTC; empty while the event is not journaled."""

    @property
    def timestamp(self) -> float:
        """`time` as seconds since 1970."""
        return datetime.fromisoformat(self.time).timestamp()


class SourceRecord(StrictModel):
    """What a run's source was when it started: enough to replay without the weights."""

    content_hash: str
    num_layers: int = Field(ge=1)
    statistics: dict[str, str] = Field(default_factory=dict)
    """Kind -> content hash of what was measured of it."""


class Started(Event):
    """The run began: the first line, once."""

    kind: ClassVar[str] = "started"
    journal: int = JOURNAL_VERSION
    config_digest: str
    """SHA-256 of the run folder's configuration (`folder.config_digest`)."""
    version: str
    """Version of evomerge."""
    sources: dict[str, SourceRecord]
    """By alias."""
    objectives: tuple[str, ...] = Field(min_length=1)
    """Names, in the order of `Outcome.objectives`; all are maximised."""
    grams: str | None = None
    """Path, within the run folder, of the Gram matrices of the sources, where the space needs them."""


class Resumed(Event):
    """A coordinator continued the run."""

    kind: ClassVar[str] = "resumed"
    pid: int
    host: Text
    elapsed_s: float = Field(ge=0)
    """Seconds that coordinators have run before, added up."""


class Asked(Event):
    """The searcher proposed a candidate, or adopted one that was injected."""

    kind: ClassVar[str] = "asked"
    candidate: int = Field(ge=0)
    recipe_id: str
    genome: tuple[Value, ...]
    parents: tuple[int, ...] = ()
    origin: Text = ""
    injected: bool = False
    """Whether a person gave its recipe; else the searcher proposed it."""
    command: Text = ""
    """Id of the command that gave it."""


class Evaluated(Event):
    """A candidate or a reference has its outcome on one split; there is no second one."""

    kind: ClassVar[str] = "evaluated"
    candidate: CandidateId
    recipe_id: str
    split: Split
    state: State
    objectives: dict[str, float] = Field(default_factory=dict)
    """Mean by name; empty where nothing was measured."""
    stderr: dict[str, float | None] = Field(default_factory=dict)
    """Standard error of the mean by name; null where one document tells nothing about it."""
    samples: dict[str, int] = Field(default_factory=dict)
    """Documents that took part, by name."""
    violation: float = Field(default=0.0, ge=0)
    """Sum of the constraints' shortfalls."""
    scores: str | None = None
    """Path of the per-sample scores within the run folder; null where nothing was measured."""
    reason: Text | None = None
    """Why it is infeasible or failed."""
    attempt: int = Field(default=1, ge=0)
    """Number of the attempt that succeeded or was the last; 0 for a reused score."""
    worker: Text | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds a stage."""
    reused_from: CandidateId | None = None
    """The candidate with the same recipe whose score this is; nothing was run."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that its worker held."""
    gpu_s: float = Field(default=0.0, ge=0)
    """GPU-seconds that the run's workers had held by then, over all sessions."""


class Retried(Event):
    """An attempt was lost; the job is still open."""

    kind: ClassVar[str] = "retried"
    candidate: CandidateId
    split: Split
    attempt: int = Field(ge=1)
    reason: Text
    worker: Text


class Reference(Event):
    """A recipe that candidates are compared with, for instance a parent."""

    kind: ClassVar[str] = "reference"
    name: Text
    recipe_id: str
    recipe: dict[str, Any]
    """The recipe as `Recipe.to_mapping` writes it."""


class Budget(Event):
    """The budget was changed; keys not named stay as they were."""

    kind: ClassVar[str] = "budget"
    changes: dict[str, float | int | None]
    command: Text = ""
    """Id of the command that changed it; empty where the run was resumed with the change."""


class Workers(Event):
    """The number of workers was changed."""

    kind: ClassVar[str] = "workers"
    workers: int = Field(ge=1)
    command: Text = ""
    """Id of the command that changed it; empty where the run was resumed with the change."""


class Held(Event):
    """The weight of a source was pinned, or freed; it holds for what is asked from then on."""

    kind: ClassVar[str] = "held"
    source: Text
    weight: float | None
    """What it is pinned to (0: the source is banned); null frees it."""
    command: Text
    """Id of the command that held it."""


class Paused(Event):
    """The coordinator drained and left; the run is meant to continue."""

    kind: ClassVar[str] = "paused"
    reason: Text
    elapsed_s: float = Field(ge=0)
    gpu_s: float = Field(default=0.0, ge=0)
    command: Text = ""
    """Id of the command that asked for it; empty where a signal did."""


class Stopped(Event):
    """The coordinator drained and left because a person ended the run."""

    kind: ClassVar[str] = "stopped"
    reason: Text
    elapsed_s: float = Field(ge=0)
    gpu_s: float = Field(default=0.0, ge=0)
    command: Text = ""
    """Id of the command that asked for it; empty where a signal did."""


class Finished(Event):
    """The run reached its budget or its searcher has nothing further to try."""

    kind: ClassVar[str] = "finished"
    reason: Text
    elapsed_s: float = Field(ge=0)
    gpu_s: float = Field(default=0.0, ge=0)


class Exported(Event):
    """A candidate was written as a model or a recipe."""

    kind: ClassVar[str] = "exported"
    candidate: CandidateId
    out: Text
    """Name of what was written: no path, so that a journal tells nothing about the machine."""


KINDS: Mapping[str, type[Event]] = {
    model.kind: model
    for model in (
        Started, Resumed, Asked, Evaluated, Retried, Reference, Budget, Workers, Held, Paused, Stopped,
        Finished, Exported,
    )
}  # fmt: skip
"""Every kind of event, by the word in its `event` key."""


def to_plain(event: Event) -> dict[str, Any]:
    """Return an event as JSON data: `seq`, `event`, `time`, then its own keys in order; no checksum."""
    own = event.model_dump(mode="json", exclude={"seq", "time"})
    return {"seq": event.seq, "event": event.kind, "time": event.time, **own}


def from_plain(data: Mapping[str, Any]) -> Event:
    """Return the event of JSON data (without its checksum).

    Raises:
        ValueError: for an unknown kind or key, or a value of the wrong type; the text says which.
    """
    keys = dict(data)
    kind = keys.pop("event", None)
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ValueError(f"unknown event {kind!r}{did_you_mean(str(kind), KINDS)}")
    try:
        return model.model_validate(keys)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join([model.kind, *(str(part) for part in fault["loc"])])
        raise ValueError(f"{place}: {fault['msg']}") from None
