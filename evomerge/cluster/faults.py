"""What goes wrong inside a worker, as small plain data that crosses processes whatever the exception was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evomerge import errors
from evomerge.errors import EvaluationError, EvomergeError, WorkerLostError

LONGEST_REASON = 400
"""Characters of a reason that are kept: one line of a journal stays readable."""


def one_line(text: str) -> str:
    """Return the first line of a text that says something, shortened."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line), "")
    return first if len(first) <= LONGEST_REASON else f"{first[: LONGEST_REASON - 3]}..."


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception that a scorer or its factory raised."""

    reason: str
    """One line for people."""
    error: str | None
    """Nearest class of `evomerge.errors`; `None` for an exception that nobody raised on purpose. Out of memory is
    `WorkerLostError`."""

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """Describe an exception."""
        text = one_line(str(error))
        if not isinstance(error, EvomergeError) and _out_of_memory(error):
            # The process may hold what it could not free.
            return cls(reason=f"out of memory ({text or type(error).__name__})", error=WorkerLostError.__name__)
        if not isinstance(error, EvomergeError):
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
            return cls(reason=f"{text}{_place(error)}", error=None)
        known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return cls(reason=text or type(error).__name__, error=next(known))

    @property
    def retryable(self) -> bool:
        """Whether another try may not meet it."""
        return self.error in {EvaluationError.__name__, WorkerLostError.__name__}

    @property
    def worker_lost(self) -> bool:
        """Whether the scorer itself says that its worker is of no more use."""
        return self.error == WorkerLostError.__name__

    def exception(self) -> EvomergeError:
        """Return the exception again, to be raised in another process."""
        kind = getattr(errors, self.error or "", EvaluationError)
        rebuilt = kind(self.reason)
        return rebuilt if isinstance(rebuilt, EvomergeError) else EvaluationError(self.reason)


def _out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, the machine's or a GPU's, wherever in the chain of exceptions."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if known or (isinstance(error, RuntimeError) and "out of memory" in str(error)):
        return True
    return error.__cause__ is not None and _out_of_memory(error.__cause__)


def _place(error: BaseException) -> str:
    """Return ` (file:line)` of where an exception was raised."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
