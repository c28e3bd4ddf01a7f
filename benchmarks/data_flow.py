"""What the data-flow space gives on the embedded models, and what its searchers cost at the paper's dimension.

    python benchmarks/data_flow.py [--seeds 0 1 2 3 4] [--evaluations 96] [--workers 2] [--json FILE]
    python benchmarks/data_flow.py --dimension

The first line searches the shipped models of one training seed with several search seeds: parameter space alone, data
flow alone (and with all scales fixed to one, the ablation of Akiba et al. 2025), one after the other, and both in one
genome, each with as many scored candidates, beside models that nothing optimised. The eight best on the search split
go to the validation split, the best one there to the test split, which nothing else sees. The second line times ask
and tell where the paper's encoding has 4,288 dimensions.

All of it is evomerge's own machinery, asked and told by hand, in plain processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.fitness import Scorer, Split
from evomerge.recipe import Recipe, SourceConfig
from evomerge.run.config import RunConfig
from evomerge.run.problem import Problem, open_problem
from evomerge.search import CmaEs, Outcome, Samples
from evomerge.search.gaussian import GaussianSearch
from evomerge.spaces import SpaceConfig, create_space

EXPERTS = ("letters", "japanese", "math")
"""Best on the search split first: the first one is model A of data flow alone."""
POPULATION = 12
FINALISTS = 8
MAX_REPEATS = 1000
"""So many proposals in a row that were scored before end a search, as in the coordinator."""

PARAMETER = {
    "method": "task_arithmetic",
    "groups": {"layers": "every", "modules": ["attention"], "embeddings": True, "head": True},
    "parameters": {"weight": [-0.5, 1.5]},
}
ROUTE = {"encoding": "hop_scales", "repeats": 2, "initial_keep": 0.05}
WIDE, NARROW = 0.17, 0.06
"""First steps, as shares of a range: the searchers' default, for which `initial_keep` is meant, and the demo's."""
NARROW_KEEP = 0.28
"""`initial_keep` that leaves the share of 0.05 with the narrow step: both put a slot 1.645 steps below zero."""


@dataclass(frozen=True)
class Arm:
    """One way to search."""

    space: dict[str, Any]
    sigma: float = WIDE
    searcher: str = "cma_es"
    options: dict[str, Any] | None = None
    """Of the searcher; None: those of CMA-ES here."""


def arms(evaluations: int) -> dict[str, Arm]:
    """Return the searches by name."""
    flow = {"kind": "data_flow", "order": list(EXPERTS), **ROUTE}
    joint = {"kind": "joint", **PARAMETER, **ROUTE}
    staged = {"schedule": "parameter_then_data_flow", "stage_evaluations": evaluations // 2}
    return {
        "parameter space": Arm(PARAMETER, NARROW),
        "data flow": Arm(flow, WIDE),
        "data flow, scales fixed to one": Arm({**flow, "scales": "fixed"}, WIDE),
        "parameter space, then data flow": Arm({**joint, **staged, "initial_keep": NARROW_KEEP}, NARROW),
        "joint": Arm({**joint, "initial_keep": NARROW_KEEP}, NARROW),
        "parameter space, then data flow; wide": Arm({**joint, **staged}, WIDE),
        "joint; wide": Arm(joint, WIDE),
    }


@dataclass(frozen=True)
class Row:
    """What one model came to; accuracies are means over the three skills."""

    arm: str
    seed: int | None
    test: float
    stderr: float
    skills: dict[str, float]
    search: float
    validation: float
    hops: int
    asked: int = 0
    scored: int = 0
    infeasible: int = 0


@dataclass(frozen=True)
class Score:
    """A recipe on one split."""

    mean: float
    stderr: float
    skills: dict[str, float]
    hops: int
    samples: Samples


def problem_of(arm: Arm, seed: int) -> Problem:
    """Open a search over the embedded models."""
    return open_problem(
        RunConfig.model_validate(
            {
                "sources": {alias: {"model": f"zoo:{alias}"} for alias in ("base", "math", "japanese", "letters")},
                "base": "base",
                "space": arm.space,
                "fitness": {
                    "suite": "fitness/zoo.yaml",
                    "objectives": ["sums.exact_match", "japanese.exact_match", "letters.exact_match"],
                },
                "search": {
                    "searcher": arm.searcher,
                    "seed": seed,
                    "options": {"population": POPULATION, "sigma": arm.sigma} if arm.options is None else arm.options,
                },
                "engine": {"kind": "transformers", "dtype": "float32", "device": "cpu", "threads": 1},
            }
        )
    )


@cache
def plain() -> Problem:
    """Return the problem of the parameter space, whose scorer serves every arm: the sources are the same."""
    return problem_of(Arm(PARAMETER, NARROW), 0)


@cache
def scorer() -> Scorer:
    """Return this process's scorer."""
    return plain().scorer()


def score(recipe: Recipe, split: Split) -> Score | None:
    """Score a recipe; None where it gives no working model."""
    evaluation = scorer().score(recipe, split)
    if evaluation.infeasible is not None:
        return None
    values = plain().objectives.measure(evaluation)
    return Score(
        mean=statistics.fmean(value.mean for value in values),
        stderr=sum(value.stderr**2 for value in values) ** 0.5 / len(values),
        skills={
            name.partition(".")[0]: value.mean for name, value in zip(plain().objectives.names, values, strict=True)
        },
        hops=int(evaluation.facts["hops"]),
        samples=evaluation.samples,
    )


def frankenmerge() -> Recipe:
    """Return the first half of math's layers, then the second half of japanese's; all else is math's."""
    copy = {"blend": {"method": "linear", "weight": {"math": 1.0}}}
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {alias: {"model": f"zoo:{alias}"} for alias in ("math", "japanese")},
            "dtype": "float32",
            "tokenizer": {"from": "math"},
            "layers": [
                {"take": {"math": 0}},
                {"take": {"math": 1}},
                {"take": {"japanese": 2}},
                {"take": {"japanese": 3}},
            ],
            "embeddings": copy,
            "head": copy,
        }
    )


def references() -> list[Row]:
    """Measure the models that nothing optimised."""
    recipes = {**plain().references(), "frankenmerge": frankenmerge()}
    return [_row(name, None, recipe) for name, recipe in recipes.items() if name != "parent:base"]


def _row(arm: str, seed: int | None, recipe: Recipe, **counts: int) -> Row:
    search, validation, test = (score(recipe, split) for split in ("search", "validation", "test"))
    if search is None or validation is None or test is None:
        raise SystemExit(f"{arm}: the chosen model does not work on every split")
    return Row(arm, seed, test.mean, test.stderr, test.skills, search.mean, validation.mean, test.hops, **counts)


def run(name: str, arm: Arm, seed: int, evaluations: int) -> Row:
    """Search once, choose among the best by validation, and measure what was chosen."""
    problem = problem_of(arm, seed)
    searcher = problem.searcher()
    known: dict[str, tuple[Score | None, Recipe]] = {}
    asked = repeats = 0
    while len(known) < evaluations and repeats < MAX_REPEATS:
        candidates = searcher.ask(1)
        if not candidates:
            break
        candidate = candidates[0]
        asked += 1
        identity = problem.identity(candidate.recipe)
        repeats = repeats + 1 if identity in known else 0
        if identity not in known:
            known[identity] = (score(candidate.recipe, "search"), candidate.recipe)
        found = known[identity][0]
        outcome = Outcome("infeasible")
        if found is not None:
            outcome = Outcome("feasible", tuple(found.skills.values()), samples=found.samples)
        searcher.tell(candidate, outcome)
    working = [(found.mean, recipe) for found, recipe in known.values() if found is not None]
    finalists = sorted(working, key=lambda pair: -pair[0])[:FINALISTS]
    validated = [found.mean if (found := score(recipe, "validation")) else -1.0 for _, recipe in finalists]
    # Of equals on validation, the better one on the search split: it comes first.
    best = validated.index(max(validated))
    counts = {"asked": asked, "scored": len(known), "infeasible": len(known) - len(working)}
    return _row(name, seed, finalists[best][1], **counts)


def study(known: Mapping[str, Arm], seeds: Sequence[int], evaluations: int, workers: int) -> Iterator[Row]:
    """Yield the rows as they come: references, then every arm with every seed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that follow, one a core
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        first = pool.submit(references)
        jobs = [pool.submit(run, name, arm, seed, evaluations) for seed in seeds for name, arm in known.items()]
        yield from first.result()
        for job in as_completed(jobs):
            yield job.result()


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table: one line an arm, mean and standard deviation over the seeds."""
    lines = [
        "| model | test: mean ± s.d. over seeds | each seed | s.e. of one | sums / japanese / letters | hops |",
        "|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        tests = [row.test for row in own]
        spread = f" ± {statistics.stdev(tests):.3f}" if len(tests) > 1 else ""
        each = " ".join(f"{value:.3f}" for value in tests) if own[0].seed is not None else ""
        skills = " / ".join(f"{statistics.fmean(row.skills[name] for row in own):.3f}" for name in own[0].skills)
        hops = " ".join(str(row.hops) for row in own)
        error = statistics.fmean(row.stderr for row in own)
        lines.append(f"| {arm} | {statistics.fmean(tests):.3f}{spread} | {each} | {error:.3f} | {skills} | {hops} |")
    return "\n".join(lines)


# ---- the paper's dimension


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _paper_space() -> Any:
    return create_space(
        SpaceConfig.model_validate({"kind": "data_flow", "encoding": "paper", "repeats": 3}),
        sources={alias: SourceConfig(model=f"org/{alias}") for alias in ("a", "b")},
        base=None,
        num_layers={"a": 32, "b": 32},
    )


def time_searcher(generations: int) -> dict[str, Any]:
    """Time ask and tell of the searcher with its own options, routes and recipes included."""
    space = _paper_space()
    CmaEs(space).ask(1)  # the first use of everything
    before, searcher = _peak_mb(), CmaEs(space)
    population = int(searcher.status()["population"])
    values = np.random.default_rng(0).random((generations, population))
    asks, tells = [], []
    for row in values:
        begun = time.perf_counter()
        candidates = searcher.ask(population)
        asks.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for candidate, value in zip(candidates, row, strict=True):
            searcher.tell(candidate, Outcome("feasible", (float(value),)))
        tells.append(time.perf_counter() - begun)
    return _figures("searcher, diagonal, with recipes", space, population, before, asks, tells)


def time_gaussian(*, diagonal: bool, generations: int) -> dict[str, Any]:
    """Time sampling and update of the Gaussian alone."""
    space = _paper_space()
    size = len(space.dimensions)
    rng = np.random.default_rng(0)
    population = int(CmaEs(space).status()["population"])
    before = _peak_mb()
    gaussian = GaussianSearch(
        np.full(size, 0.5), sigma=WIDE, population=population, diagonal=diagonal, min_steps=np.zeros(size), rng=rng
    )
    asks, tells = [], []
    for _ in range(generations):
        begun = time.perf_counter()
        points = [gaussian.sample() for _ in range(population)]
        asks.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        gaussian.update(points)
        tells.append(time.perf_counter() - begun)
    return _figures(f"Gaussian alone, {'diagonal' if diagonal else 'full'}", space, population, before, asks, tells)


def _figures(
    name: str, space: Any, population: int, before: float, asks: Sequence[float], tells: Sequence[float]
) -> dict[str, Any]:
    totals = [ask + tell for ask, tell in zip(asks, tells, strict=True)]
    return {
        "what": name,
        "dimensions": len(space.dimensions),
        "population": population,
        "generations": len(asks),
        "ask_s": statistics.median(asks),
        "tell_s": statistics.median(tells),
        "mean_s": statistics.fmean(totals),
        "worst_s": max(totals),
        "peak_mb": _peak_mb() - before,
    }


def dimension(generations: int) -> Iterator[dict[str, Any]]:
    """Yield the figures of each form, each from a process of its own, so that peaks of memory do not mix."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    calls: list[tuple[Any, dict[str, Any]]] = [
        (time_searcher, {"generations": generations}),
        (time_gaussian, {"diagonal": True, "generations": generations}),
        (time_gaussian, {"diagonal": False, "generations": generations}),
    ]
    for function, keys in calls:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool.submit(function, **keys).result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="search seeds")
    parser.add_argument("--evaluations", type=int, default=96, help="scored candidates of each search")
    parser.add_argument("--arms", nargs="+", choices=list(arms(2)), default=list(arms(2)), help="which searches")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--dimension", action="store_true", help="time ask and tell at 4,288 dimensions instead")
    parser.add_argument("--generations", type=int, default=30, help="of --dimension")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    results: list[dict[str, Any]] = []
    if options.dimension:
        for figures in dimension(options.generations):
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()))
            results.append(figures)
    else:
        rows: list[Row] = []
        chosen = {name: arm for name, arm in arms(options.evaluations).items() if name in options.arms}
        for row in study(chosen, options.seeds, options.evaluations, options.workers):
            rows.append(row)
            print(f"{time.perf_counter() - begun:5.0f} s  {row}", flush=True)
        rows.sort(key=lambda row: -1 if row.seed is None else options.arms.index(row.arm) * 1000 + row.seed)
        print(table(rows))
        results = [asdict(row) for row in rows]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
