"""The end of a run that no coordinator works on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from evomerge.errors import StateError
from evomerge.run.commands import Answer
from evomerge.run.events import Started, Stopped
from evomerge.run.folder import RunFolder
from evomerge.run.journal import JournalWriter
from evomerge.run.lease import Lease
from evomerge.run.mirror import mirrored
from evomerge.run.state import fold


def stop_idle(path: Path, mirror: str | None = None) -> Answer:
    """Journal that a paused or interrupted run is stopped.

    Args:
        path: the run folder; with a mirror it need not exist.
        mirror: fsspec address that learns it too, also where the run is stopped already; what the folder lacks of what
            is there is fetched first.

    Raises:
        StateError: when it is finished or was never started, or its journal is broken; when folder and mirror are two
            runs, or neither is one.
        ConfigError: for an address that cannot be used.
        RunHeldError: when a coordinator works on it after all.
        StorageError: when the disk refuses, or the mirror cannot be reached.
    """
    with mirrored(mirror, path) as copy:
        folder = RunFolder.open(path)
        rule = folder.config().search.scalarize
        with Lease(folder.path), JournalWriter(folder.journal) as journal:
            if not journal.events or not isinstance(journal.events[0], Started):
                raise StateError(f"{folder.journal}: nothing was journaled yet, so there is nothing to stop")
            state = fold(journal.events, rule)
            if state.lifecycle == "finished":
                raise StateError(f"{path}: the run is finished, so there is nothing to stop")
            with nullcontext() if copy is None else copy.following(folder, journal):
                if state.lifecycle != "stopped":
                    journal.append(Stopped(reason="stop command", elapsed_s=state.elapsed_s, gpu_s=state.gpu_s))
    facts = {"state": "stopped", "evaluations": state.num_done, "elapsed_s": round(state.elapsed_s, 3)}
    return Answer(done=True, text=f"stopped after {state.num_done} evaluations", facts=facts)
