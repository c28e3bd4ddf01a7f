"""Where a candidate's time goes, and what the coordinator itself costs.

    python benchmarks/candidate_cost.py [CONFIG] [--candidates 30] [--json]

Two parts, both in this process and one after the other. First, real candidates of a search file (the demo's, where
none is given), each stage timed by itself: medians over the candidates, and each stage's share. Second, the whole
coordinator with a scorer that answers at once: what is left is asking, decoding, identities, score files, journal
with fsync, and telling. Machines are noisy: read the shares and the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evomerge.cluster import InlineExecutor
from evomerge.demo.run import CONFIG
from evomerge.fitness import Evaluation, Split
from evomerge.merging import materialise, open_sources, plan
from evomerge.recipe import Recipe
from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Started
from evomerge.run.journal import JournalWriter
from evomerge.run.load import load_config
from evomerge.run.problem import Problem, all_sources, open_problem
from evomerge.run.scores import ScoreStore
from evomerge.run.session import start
from evomerge.search import Outcome, create_searcher

Times = dict[str, list[float]]


@contextmanager
def timed(times: Times, stage: str) -> Iterator[None]:
    """Add the seconds of a block to a stage."""
    begun = time.perf_counter()
    yield
    times.setdefault(stage, []).append(time.perf_counter() - begun)


def candidate_times(config: RunConfig, count: int) -> Times:
    """Return the seconds of each stage for `count` candidates of a search."""
    problem = open_problem(config)
    searcher = create_searcher(config.search, problem.space)
    scorer = problem.scorer()
    sources = open_sources(all_sources(config, blend={"method": "linear"}), Path.cwd(), resident=True)
    scorer.score(problem.references()["uniform"], "search")  # the first use of everything
    times: Times = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = JournalWriter(Path(folder) / "journal.jsonl")
        journal.append(Started(config_digest="", version="", sources={}, objectives=problem.objectives.names))
        store = ScoreStore(Path(folder))
        for _ in range(count):
            with timed(times, "ask and decode"):
                candidate = searcher.ask(1)[0]
            with timed(times, "identity"):
                recipe_id = problem.identity(candidate.recipe)
            with timed(times, "materialise"):
                for _name, _tensor in materialise(plan(candidate.recipe, sources)):
                    pass
            evaluation = scorer.score(candidate.recipe, "search")
            loaded = evaluation.seconds["materialise"] - times["materialise"][-1]
            times.setdefault("load into the model", []).append(max(0.0, loaded))
            times.setdefault("sanity gate", []).append(evaluation.seconds["gate"])
            times.setdefault("score (lm-eval)", []).append(evaluation.seconds["score"])
            with timed(times, "objectives"):
                values = problem.objectives.measure(evaluation)
            with timed(times, "score file"):
                store.write(evaluation)
            with timed(times, "journal (one line, fsync)"):
                journal.append(Asked(candidate=candidate.id, recipe_id=recipe_id, genome=candidate.genome))
            with timed(times, "tell"):
                searcher.tell(candidate, Outcome("feasible", tuple(value.mean for value in values)))
        journal.close()
    scorer.close()
    return times


class InstantScorer:
    """Answers at once with scores of the right shape."""

    def __init__(self, problem: Problem) -> None:
        self._metrics = sorted(problem.objectives.metrics)

    def score(self, recipe: Recipe, split: Split) -> Evaluation:
        """Return 100 made-up scores a metric."""
        del recipe
        samples = {name: np.zeros(100) for name in self._metrics}
        documents = {name.split(".")[0]: tuple(f"{index:064d}" for index in range(100)) for name in self._metrics}
        return Evaluation(split=split, samples=samples, documents=documents)

    def close(self) -> None:
        """Nothing is held."""


def coordinator_overhead(config: RunConfig, count: int) -> float:
    """Return the coordinator's seconds a candidate, everything but scoring, over a run of `count` candidates."""
    more = {
        "budget": config.budget.model_copy(update={"evaluations": count}),
        "references": config.references.model_copy(update={"coefficients": 0}),
    }
    short = config.model_copy(update=more)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        start(
            short.model_copy(update={"budget": more["budget"].model_copy(update={"evaluations": 1})}),
            path / "warm",
            executor=lambda problem: InlineExecutor(problem.config.executor, lambda: InstantScorer(problem)),
        )
        begun = time.perf_counter()
        open_problem(short)
        opening = time.perf_counter() - begun
        begun = time.perf_counter()
        start(
            short,
            path / "timed",
            executor=lambda problem: InlineExecutor(problem.config.executor, lambda: InstantScorer(problem)),
        )
        return (time.perf_counter() - begun - opening) / count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    config = load_config(arguments.config, ["executor.kind=inline"])
    times = candidate_times(config, arguments.candidates)
    medians = {stage: statistics.median(values) for stage, values in times.items()}
    overhead = coordinator_overhead(config, 100)
    if arguments.json:
        print(json.dumps({"seconds": medians, "coordinator_s": overhead, "candidates": arguments.candidates}, indent=2))
        return
    total = sum(medians.values())
    print(f"Median over {arguments.candidates} candidates of {arguments.config.name}\n")
    print(f"{'stage':<28}{'ms':>10}{'share':>9}")
    for stage, value in medians.items():
        print(f"{stage:<28}{1e3 * value:>10.2f}{value / total:>9.1%}")
    print(f"{'together':<28}{1e3 * total:>10.2f}")
    print(
        f"\nThe whole coordinator with a scorer that answers at once: {1e3 * overhead:.1f} ms a candidate, "
        f"{overhead / total:.1%} of the above"
    )


if __name__ == "__main__":
    main()
