"""What Ray's errors say about a worker that gave no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evomerge.cluster.faults import one_line


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker was lost."""

    reason: str
    preempted: bool = False
    """Its node was taken away, after a notice."""
    node_died: bool = False
    unreachable: bool = False
    """It does not answer, and may be alive."""


def loss_of(error: Exception) -> Loss:
    """Return what an exception of Ray's says; the sentences are Ray 2.60's, and any other is quoted."""
    from ray.exceptions import ActorUnavailableError, OutOfMemoryError

    text = str(error)
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        told = re.search(r"Memory on the node .* was (\S+) used / (\S+) limit", text)
        detail = f" ({told[1]} of {told[2]} in use)" if told else ""
        return Loss(f"was ended by Ray, because its machine ran out of memory{detail}")
    return Loss(
        _why(error, text),
        preempted=bool(getattr(error, "preempted", False)),
        node_died="its node has died" in text,
        unreachable=isinstance(error, ActorUnavailableError),
    )


def _why(error: Exception, text: str) -> str:
    """Say in a few words how a worker was lost."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = next((line for line in lines if "Worker exit detail:" in line), "")
    if told:
        detail = told.split("Worker exit detail:", 1)[1].split("Some common causes", 1)[0].strip()
        return one_line(f"died ({detail})")
    if "creation task" in text:  # the last line of the traceback names the exception
        return one_line(f"died ({lines[-1]})")
    if "its node has died" in text:
        return "died with its node"
    return one_line(f"was lost ({type(error).__name__}: {lines[0] if lines else ''})")
