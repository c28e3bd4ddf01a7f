"""Asynchronous search against a barrier after each generation, on real Ray workers whose evaluations last unevenly.

    python benchmarks/asynchrony.py [--seeds 0 1 2 3 4] [--evaluations 128] [--workers 8] [--mean 0.4]
                                    [--laws even uneven heavy] [--searchers barrier,asynchronous,...] [--json FILE]

CMA-ES on six weights of four sources; a worker sleeps for a time that follows from the recipe's hash, and the score is
a known function of the weights, whose best value is 1 (an ill-conditioned bowl; the starts differ with the seed). The
laws of the durations have one mean: `even` (no spread), `uneven` (log-normal, coefficient of variation 0.5), `heavy`
(Pareto of exponent 1.5, cut off at 20 times its least). All seeds, searchers and laws share one set of workers.

- *wall*: seconds from the first candidate to the last outcome.
- *busy*: seconds that workers slept, over workers times wall.
- *best*: the best value among all evaluations, and *best then*: among those that were there when the asynchronous
  search of the same seed and population had ended.

Means over seeds and their standard deviations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cluster import RayExecutor
from evomerge.cluster.types import Event, Job
from evomerge.demo.run import CONFIG
from evomerge.fitness.types import Evaluation, Minibatch, Split
from evomerge.recipe import Recipe
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.load import load_config
from evomerge.run.session import start
from evomerge.testing.scorers import example_recipe, weights

OBJECTIVE = "sums.exact_match"
SEARCHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "barrier": ("cma_es", {"population": 8}),
    "asynchronous": ("cma_es", {"population": 8, "asynchronous": True}),
    "barrier_16": ("cma_es", {"population": 16}),
    "asynchronous_16": ("cma_es", {"population": 16, "asynchronous": True}),
    "portfolio": (
        "portfolio",
        {
            "together": True,
            "stages": [
                {"searcher": "cma_es", "options": {"population": 8}},
                {"searcher": "nsga_ii", "options": {"population": 8}},
            ],
        },
    ),
}
TWINS = {"barrier": "asynchronous", "barrier_16": "asynchronous_16", "portfolio": "asynchronous"}
"""With whose end `best then` is read."""
LAWS = ("even", "uneven", "heavy")


def duration(recipe: Recipe, law: str, mean: float) -> float:
    """Return the seconds that a recipe takes, from its hash."""
    digest = hashlib.sha256(json.dumps(recipe.to_mapping(), sort_keys=True).encode()).digest()
    draw = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
    if law == "even":
        return mean
    if law == "uneven":
        sigma = float(np.sqrt(np.log(1.25)))
        return float(mean * draw.lognormal(-(sigma**2) / 2, sigma))
    return float(mean * min(20.0, (1 - draw.random()) ** (-1 / 1.5)) / PARETO_MEAN)


PARETO_MEAN = 3.0 - 2.0 * 20.0**-0.5
"""Mean of min(20, X), X of Pareto's law with exponent 1.5 and least value 1: 1 plus the integral of x^-1.5 to 20."""


class SleepingScorer:
    """Sleeps as long as the recipe's law says and scores a bowl."""

    def __init__(self, law: str, mean: float) -> None:
        self._law = law
        self._mean = mean

    def score(self, recipe: Recipe, split: Split, minibatch: Minibatch | None = None) -> Evaluation:  # noqa: ARG002
        """Sleep and score."""
        seconds = duration(recipe, self._law, self._mean)
        time.sleep(seconds)
        numbers = weights(recipe)
        stretch = np.logspace(0, 2, len(numbers))
        value = float(np.exp(-np.sum(stretch * (numbers - 0.62) ** 2) / 10))
        return Evaluation(split, {OBJECTIVE: np.full(4, value)}, {"sums": ("a", "b", "c", "d")})

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Shared:
    """An executor for many searches, which none of them closes."""

    inner: RayExecutor
    capacity: int

    @property
    def open_jobs(self) -> int:
        """How many jobs are open."""
        return self.inner.open_jobs

    def submit(self, job: Job) -> None:
        """Take a job."""
        self.inner.submit(job)

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened."""
        return self.inner.wait(timeout_s)

    def resize(self, workers: int) -> None:
        """Stay as it is."""

    def status(self) -> dict[str, float | int | str]:
        """Return a few figures."""
        return self.inner.status()

    def close(self) -> None:
        """Stay open."""


def search_file(searcher: str, options: argparse.Namespace, seed: int) -> RunConfig:
    """Return the search."""
    name, settings = SEARCHERS[searcher]
    config = load_config(CONFIG, ["references.parents=false", "references.uniform=false", "references.coefficients=0"])
    data = config.model_dump(mode="json", exclude={"fitness", "space", "search", "budget", "executor", "finalists"})
    starts = [stage["options"] for stage in settings.get("stages", []) if stage["searcher"] == "cma_es"] or [settings]
    for each in starts:
        each["start"] = "random"
    return RunConfig.model_validate(
        {
            **data,
            "fitness": {"suite": "fitness/zoo.yaml", "objectives": [OBJECTIVE]},
            "space": {"method": "task_arithmetic", "groups": {"layers": 2}},
            "search": {"searcher": name, "seed": seed, "options": settings},
            "budget": {"evaluations": options.evaluations},
            "executor": {"kind": "ray", "workers": options.workers},
            "finalists": 0,
        }
    )


def searched(executor: Shared, searcher: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run one search and return its course."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        start(search_file(searcher, options, seed), path, executor=lambda _: executor)
        events = read_journal(path / "journal.jsonl")
    begin = min(event.timestamp for event in events if isinstance(event, Asked))
    outcomes = [event for event in events if isinstance(event, Evaluated) and event.split == "search"]
    wall_s = outcomes[-1].timestamp - begin
    course = [(event.timestamp - begin, event.objectives[OBJECTIVE]) for event in outcomes]
    busy_s = sum(sum(event.seconds.values()) for event in outcomes)
    return {"wall_s": wall_s, "busy": busy_s / (options.workers * wall_s), "course": course}


def best_by(course: Sequence[tuple[float, float]], end_s: float) -> float:
    """Return the best value that was there at a time."""
    return max((value for at_s, value in course if at_s <= end_s), default=0.0)


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.3f} +- {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def _warm(executor: RayExecutor, workers: int) -> None:
    """Keep workers scoring until all are there."""
    number = 0
    while executor.open_jobs or int(executor.status()["workers_ready"]) < workers:
        while executor.open_jobs < workers and int(executor.status()["workers_ready"]) < workers:
            number += 1
            executor.submit(Job(f"warm/{number}", example_recipe(seed=number), "search"))
        executor.wait(0.5)


def measure(law: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Run every searcher with every seed under one law, on workers of its own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.searchers}
    config = load_config(CONFIG, [f"executor.workers={options.workers}", "executor.cpus_per_worker=0.1"]).executor
    executor = RayExecutor(config, partial(SleepingScorer, law, options.mean))
    try:
        _warm(executor, options.workers)
        for seed in options.seeds:
            for name in options.searchers:
                found[name].append(searched(Shared(executor, options.workers), name, options, seed))
    finally:
        executor.close()
    return found


def rows(law: str, found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the table's rows of one law."""
    for name, runs in found.items():
        twin = TWINS.get(name, name)
        others = found.get(twin, runs)
        saved = [1 - other["wall_s"] / run["wall_s"] for run, other in zip(runs, others, strict=True)]
        then = [best_by(run["course"], other["wall_s"]) for run, other in zip(runs, others, strict=True)]
        cells = [
            law,
            name,
            spread([run["wall_s"] for run in runs]),
            spread([run["busy"] for run in runs]),
            spread(saved) if twin != name else "",
            spread([best_by(run["course"], float("inf")) for run in runs]),
            spread(then),
        ]
        yield "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--evaluations", type=int, default=128)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--mean", type=float, default=0.4, help="seconds an evaluation takes on average")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--searchers", type=lambda text: text.split(","), default=list(SEARCHERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print("| law | searcher | wall s | busy | asynchronous saves | best | best then |\n|---|---|---|---|---|---|---|")
    every: dict[str, Any] = {}
    for law in options.laws:
        every[law] = measure(law, options)
        print("\n".join(rows(law, every[law])), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(every) + "\n")


if __name__ == "__main__":
    main()
