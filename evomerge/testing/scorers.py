"""Scorers over known functions, and scorers that fail on purpose: for tests of searches, executors and runs.

No model is involved. Every scorer here, and `functools.partial` of it, can be sent to another process, so
`partial(FunctionScorer, closeness)` is a scorer factory for any executor.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvaluationError, WorkerLostError
from evomerge.fitness.types import SPLITS, Evaluation, Minibatch, Scorer, Split
from evomerge.recipe import Recipe

Samples = Mapping[str, NDArray[np.float64]]
"""`task.metric` -> per-sample scores."""
ScoreFunction = Callable[[Recipe, Split], Samples]
NUM_DOCUMENTS = 8


def example_recipe(weight: float = 0.5, *, seed: int = 0) -> Recipe:
    """Return a small recipe over three sources that need not exist; `weight` is that of the first expert."""
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {alias: {"model": f"zoo:{alias}"} for alias in ("base", "left", "right")},
            "base": "base",
            "seed": seed,
            "blend": {"method": "task_arithmetic", "weight": {"left": weight, "right": 1.0 - weight}},
        }
    )


def weights(recipe: Recipe) -> NDArray[np.float64]:
    """Return every number of a recipe's blends, wherever it stands, as float64 of shape (numbers,).

    The order is that of the sorted key paths, so it is the same for every recipe of one space.
    """
    parts = recipe.to_mapping()
    blends = [parts.get(key) for key in ("blend", "modules", "layers", "embeddings", "head", "segments")]
    return np.array([number for blend in blends for number in _numbers(blend)], dtype=np.float64)


def _numbers(data: Any) -> list[float]:
    if isinstance(data, Mapping):
        return [number for key in sorted(set(data) - {"take", "until"}) for number in _numbers(data[key])]
    if isinstance(data, (list, tuple)):
        return [number for item in data for number in _numbers(item)]
    return [float(data)] if isinstance(data, (int, float)) and not isinstance(data, bool) else []


def closeness(recipe: Recipe, split: Split, *, target: float = 0.7) -> Samples:
    """Score how near every weight is to `target`, on two tasks: `near.score` and `steep.score`, each in [0, 1].

    Documents differ in how strict they are, and splits in their documents, as real benchmarks do.
    """
    distances = (weights(recipe) - target) ** 2
    distance = float(distances.mean()) if distances.size else 0.0
    strictness = 1.0 + np.arange(NUM_DOCUMENTS) / NUM_DOCUMENTS + SPLITS.index(split) / 100
    return {"near.score": np.exp(-strictness * distance), "steep.score": np.exp(-10 * strictness * distance)}


class FunctionScorer:
    """A scorer over a known function of the recipe.

    Args:
        function: per-sample scores of a recipe on a split.
    """

    def __init__(self, function: ScoreFunction = closeness) -> None:
        self._function = function

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:  # noqa: ARG002
        """Apply the function."""
        scores = self._function(recipe, split)
        samples = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
        tasks = {name.split(".")[0]: len(values) for name, values in samples.items()}
        documents = {task: _documents(task, split, count) for task, count in tasks.items()}
        return Evaluation(split, samples, documents, facts={"parameters": 1.0}, seconds={"score": 0.0})

    def close(self) -> None:
        """Hold nothing."""


def _documents(task: str, split: Split, count: int) -> tuple[str, ...]:
    return tuple(hashlib.sha256(f"{task}/{split}/{index}".encode()).hexdigest()[:16] for index in range(count))


Behaviour = Literal[
    "raise", "retryable", "retryable_once", "lost_once", "exit", "exit_once", "kill_once", "hang", "hang_once",
    "slow", "unsendable",
]  # fmt: skip
"""What `FaultyScorer` does instead of scoring: raise a `ValueError`; an `EvaluationError`; a `WorkerLostError`; end
its process with `os._exit`; kill it with SIGKILL; sleep for an hour; take `slow_s` seconds and then score; return
what cannot be sent. `_once`: on the first attempt of that recipe only, whichever process it runs in."""


class FaultyScorer:
    """A scorer that fails on purpose for recipes of given seeds, and scores all others.

    Args:
        inner: scores whatever does not fail.
        folder: every attempt leaves a file `SEED.NUMBER` here that holds the process id; this is how the first
            attempt is known from later ones.
        plan: `seed` of a recipe -> behaviour.
        slow_s: seconds of `slow`.
    """

    def __init__(self, inner: Scorer, folder: Path, plan: Mapping[int, Behaviour], *, slow_s: float = 1.0) -> None:
        self._inner = inner
        self._folder = folder
        self._plan = plan
        self._slow_s = slow_s

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:  # noqa: ARG002
        """Fail as planned, or score."""
        attempt = self._note_attempt(recipe.seed)
        behaviour = self._plan.get(recipe.seed)
        if behaviour is not None and not (behaviour.endswith("_once") and attempt > 1):
            self._misbehave(behaviour.removesuffix("_once"), recipe.seed)
        evaluation = self._inner.score(recipe, split)
        if behaviour == "unsendable":
            return Evaluation(split, samples=cast("Samples", threading.Lock()))
        return evaluation

    def close(self) -> None:
        """Close the scorer within."""
        self._inner.close()

    def _note_attempt(self, seed: int) -> int:
        attempt = 1
        while True:
            try:
                with (self._folder / f"{seed}.{attempt}").open("x") as file:
                    file.write(str(os.getpid()))
            except FileExistsError:
                attempt += 1
            else:
                return attempt

    def _misbehave(self, behaviour: str, seed: int) -> None:
        if behaviour == "raise":
            raise ValueError(f"the recipe of seed {seed} cannot be scored\nand this is a second line")
        if behaviour == "retryable":
            raise EvaluationError(f"the recipe of seed {seed} was out of luck")
        if behaviour == "lost":
            raise WorkerLostError("the engine died")
        if behaviour == "exit":
            os._exit(1)
        if behaviour == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour in {"hang", "slow"}:
            time.sleep(3600.0 if behaviour == "hang" else self._slow_s)


def attempts(folder: Path, seed: int) -> list[int]:
    """Return the process ids of the attempts that a `FaultyScorer` has begun for a recipe's seed, in order."""
    files = sorted(folder.glob(f"{seed}.*"), key=lambda path: int(path.suffix[1:]))
    return [int(text) for text in (path.read_text() for path in files) if text]


def faulty(folder: Path, plan: Mapping[int, Behaviour] | None = None, *, slow_s: float = 1.0) -> FaultyScorer:
    """Return a `FaultyScorer` over `closeness`; `partial(faulty, folder, plan)` is a factory of it."""
    return FaultyScorer(FunctionScorer(closeness), folder, plan or {}, slow_s=slow_s)
