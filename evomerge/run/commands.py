"""What people ask of a running coordinator: files in `commands/`, written by other processes and answered beside them.

::

    commands/ID.json          a command, whole or absent; IDs sort by time
    commands/ID.answer.json   what became of it; whoever sent it takes it away

Their content is data from outside: it is checked as the search file is, and nothing in it is run.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from evomerge.documents import StrictModel
from evomerge.errors import EvomergeError, StateError
from evomerge.run.storage import storage_errors, write_atomically

_log = logging.getLogger(__name__)

FOLDER = "commands"
MAX_WAITING = 100
"""So many commands may wait; a sender of one more is refused."""
MAX_BYTES = 8 << 20
"""A larger file is no command: recipes are kilobytes."""
_MAX_ANSWERS = 1000
"""Answers that nobody took, of senders that did not wait; older ones are removed."""
_NAME = re.compile(r"(\d{20}-[0-9a-f]{8})\.json")


class Drain(StrictModel):
    """Finish what is being scored, then leave: `pause` is meant to continue, `stop` is not."""

    command: Literal["pause", "stop"]


class ChangeBudget(StrictModel):
    """Change limits; None takes one away."""

    command: Literal["budget"] = "budget"
    changes: dict[str, bool | int | float | str | None] = Field(min_length=1)


class SetWorkers(StrictModel):
    """Work with so many workers from now on."""

    command: Literal["workers"] = "workers"
    workers: int = Field(ge=1, le=100_000)


class Inject(StrictModel):
    """Score a recipe as a candidate."""

    command: Literal["inject"] = "inject"
    recipe: dict[str, Any]


class Hold(StrictModel):
    """Pin the weight of a source in what is asked from now on; None frees it."""

    command: Literal["hold"] = "hold"
    source: str
    weight: float | None = Field(allow_inf_nan=False)


Command = Drain | ChangeBudget | SetWorkers | Inject | Hold
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="command")])


class Answer(StrictModel):
    """What became of a command."""

    done: bool
    text: str
    """One sentence: what was done, or why it was not."""
    exit_code: int = 0
    """What the sender's command exits with."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What was done, for machines."""

    @classmethod
    def refusal(cls, error: EvomergeError) -> Answer:
        """Return the answer to a command that cannot be carried out."""
        return cls(done=False, text=str(error), exit_code=error.exit_code)


@dataclass(frozen=True, slots=True)
class Received:
    """A command as it came in."""

    id: str
    command: Command | None
    """None: the file is damaged."""
    fault: str = ""
    """What is wrong with it then."""

    @property
    def sent_ns(self) -> int:
        """When it was sent, nanoseconds since 1970."""
        return int(self.id.partition("-")[0])


@dataclass(slots=True)
class Inbox:
    """The commands of a run, for its coordinator.

    A folder that cannot be read or written never disturbs the run: commands then wait, or go without an answer.

    Args:
        run: the run folder.
        began_ns: when this session took the lease, nanoseconds since 1970; what was sent before was meant for another.
        every_s: shortest time between two looks at the disk.
        clock: monotonic seconds.
    """

    run: Path
    began_ns: int = 0
    every_s: float = 0.5
    clock: Callable[[], float] = time.monotonic
    _looked_s: float = field(default=float("-inf"), init=False)
    _taken: set[str] = field(default_factory=set, init=False)

    def look(self, *, now: bool = False) -> list[Received]:
        """Return the commands that came since the last look, the oldest first, each once; mostly none.

        Args:
            now: look at the disk also if the last look was just before.
        """
        if not now and self.clock() - self._looked_s < self.every_s:
            return []
        self._looked_s = self.clock()
        found = [number for number in _waiting(self.run) if number not in self._taken]
        self._taken.update(found[:MAX_WAITING])
        return [_read(self.run, number) for number in found[:MAX_WAITING]]

    def answer(self, number: str, answer: Answer) -> None:
        """Write the answer to a command and take the command away."""
        folder = self.run / FOLDER
        try:
            write_atomically(folder / f"{number}.answer.json", answer.model_dump_json().encode())
            (folder / f"{number}.json").unlink(missing_ok=True)
            _forget_old_answers(folder)
        except OSError as error:
            _log.warning("command %s: its answer could not be written (%s)", number, error)


def send(run: Path, command: Command) -> str:
    """Write a command for the coordinator of a run and return its id.

    Raises:
        StateError: when too many commands wait.
        StorageError: when the disk refuses.
    """
    folder = run / FOLDER
    if len(list(_waiting(run))) >= MAX_WAITING:
        raise StateError(f"{folder}: {MAX_WAITING} commands wait there already; wait until the coordinator took them")
    number = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    with storage_errors(folder, "creating the folder"):
        folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{number}.json", command.model_dump_json().encode())
    return number


def take_answer(run: Path, number: str) -> Answer | None:
    """Return the answer to a command and take it away, or None where there is none yet.

    Raises:
        StateError: when it was damaged.
    """
    path = run / FOLDER / f"{number}.answer.json"
    try:
        answer = Answer.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StateError(f"{path}: the answer cannot be read ({type(error).__name__}); see `evomerge status`") from None
    path.unlink(missing_ok=True)
    return answer


def withdraw(run: Path, number: str) -> None:
    """Take a command back that no coordinator will answer."""
    (run / FOLDER / f"{number}.json").unlink(missing_ok=True)


def _waiting(run: Path) -> Iterator[str]:
    """Yield the ids of the commands that wait, the oldest first; other files are none of ours."""
    try:
        names = sorted(os.listdir(run / FOLDER))  # noqa: PTH208  once per loop: names alone
    except OSError:
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match is not None:
            yield match[1]


def _read(run: Path, number: str) -> Received:
    path = run / FOLDER / f"{number}.json"
    try:
        # A link might lead anywhere; a command is a plain file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return Received(number, None, f"it is larger than {MAX_BYTES >> 20} MiB")
        return Received(number, _COMMAND.validate_json(data))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        return Received(number, None, f"{place}: {fault['msg']}" if place else str(fault["msg"]))
    except OSError as error:
        return Received(number, None, error.strerror or str(error))
    except (ValueError, RecursionError) as error:
        return Received(number, None, str(error))


def _forget_old_answers(folder: Path) -> None:
    answers = sorted(folder.glob("*.answer.json"))
    for path in answers[: max(0, len(answers) - _MAX_ANSWERS)]:
        path.unlink(missing_ok=True)
