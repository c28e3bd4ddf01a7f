"""A scorer that is a known function of the recipe and misbehaves by a script: for whole runs with faults."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from evomerge.errors import EvaluationError
from evomerge.fitness.types import Evaluation, Minibatch, Split
from evomerge.recipe import Recipe, SourceInfo, identity
from tests.run.small import AnalyticScorer

Act = Literal["hold", "hold_once", "hang_once", "kill_once", "kill", "raise", "unlucky_once", "starve_once"]
"""What happens to a recipe while it is scored: the worker waits until it is told to go on (`Script.release`); sleeps
for an hour; dies by SIGKILL; a `ValueError`; an `EvaluationError`; no memory is left. `_once`: on the first attempt."""
LONGEST_S = 60.0
SCORING_S = 0.05
"""Seconds that scoring takes, so that workers work side by side."""


class Attempt(NamedTuple):
    """One time that a recipe was given to a worker."""

    recipe_id: str
    pid: int
    node: str
    """Ray's id of the node, empty where no Ray is."""


@dataclass(frozen=True, slots=True)
class Identities:
    """What the analytic scorer needs of a problem, small enough to be sent to workers."""

    infos: Mapping[str, SourceInfo]

    def identity(self, recipe: Recipe) -> str:
        """Return a recipe's identity, as the run has it."""
        return identity(recipe, self.infos)


@dataclass(frozen=True, slots=True)
class Script:
    """Who misbehaves and how; every attempt leaves a note in the folder, from any process of this machine.

    Args:
        folder: for the notes.
        acts: recipe id -> act, on the search split.
    """

    folder: Path
    acts: Mapping[str, Act]

    def attempts(self, recipe_id: str, split: Split = "search") -> list[Attempt]:
        """Return the attempts that were begun for a recipe, in order."""
        files = self.folder.glob(f"{recipe_id}.{split}.*.json")
        return _read(sorted(files, key=lambda path: int(path.name.split(".")[2])))

    def all_attempts(self) -> list[Attempt]:
        """Return all attempts that were begun for any recipe on any split."""
        return _read(self.folder.glob("*.json"))

    def release(self, attempt: int = 1) -> None:
        """Let the worker that waits in this attempt go on."""
        (self.folder / f"released.{attempt}").touch()

    def _note(self, recipe_id: str, split: Split) -> int:
        note = json.dumps({"recipe_id": recipe_id, "pid": os.getpid(), "node": _node()})
        temporary = self.folder / f"{os.getpid()}.{time.monotonic_ns()}.tmp"
        temporary.write_text(note)
        number = 1
        while True:
            try:
                os.link(temporary, self.folder / f"{recipe_id}.{split}.{number}.json")
            except FileExistsError:
                number += 1
            else:
                temporary.unlink()
                return number

    def play(self, recipe_id: str, split: Split) -> None:
        """Note the attempt, and do what is planned for it."""
        act = self.acts.get(recipe_id) if split == "search" else None
        attempt = self._note(recipe_id, split)
        time.sleep(SCORING_S)
        if act is not None and (attempt == 1 or not act.endswith("_once")):
            if act.startswith("hold"):
                self._hold(attempt)
            misbehave(act.removesuffix("_once"))

    def _hold(self, attempt: int) -> None:
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end and not (self.folder / f"released.{attempt}").exists():
            time.sleep(0.02)


def _read(notes: Iterable[Path]) -> list[Attempt]:
    return [Attempt(**json.loads(note.read_text())) for note in notes]


def misbehave(act: str) -> None:
    """Do what scoring must not do; nothing for an act that is none."""
    if act == "raise":
        raise ValueError("planned")
    if act == "unlucky":
        raise EvaluationError("the engine was out of luck")
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "hang":
        time.sleep(3600)
    if act == "starve":
        _exhaust_memory()


def _exhaust_memory() -> None:
    """Ask for more memory than the process may have: a real `MemoryError`."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 32, limits[1]))
    try:
        np.ones(1 << 40, dtype=np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


class ScriptedScorer(AnalyticScorer):
    """The analytic scorer, with a script before each scoring."""

    def __init__(self, identities: Identities, script: Script) -> None:
        super().__init__(identities)  # type: ignore[arg-type]  # it asks for identities alone
        self._identities = identities
        self._script = script

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:
        """Misbehave as planned, or score."""
        self._script.play(self._identities.identity(recipe), split)
        return super().score(recipe, split)


class HarriedScorer(AnalyticScorer):
    """The analytic scorer at a steady pace; its process misbehaves where a file with its number says how.

    Args:
        identities: of recipes.
        orders: folder of files that are named by process ids and hold an act; each is obeyed once.
        scoring_s: seconds that scoring takes.
    """

    def __init__(self, identities: Identities, orders: Path, scoring_s: float) -> None:
        super().__init__(identities)  # type: ignore[arg-type]  # it asks for identities alone
        self._order = orders / str(os.getpid())
        self._scoring_s = scoring_s

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:
        """Misbehave as ordered, or score."""
        time.sleep(self._scoring_s)
        if self._order.exists():
            act = self._order.read_text()
            self._order.unlink()
            misbehave(act)
        return super().score(recipe, split)
