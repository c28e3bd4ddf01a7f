"""A small search: three tiny random models, one task, and a scorer that is a known function of the recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cluster import InlineExecutor
from evomerge.documents import Document
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run.config import RunConfig
from evomerge.run.load import resolve_config
from evomerge.run.problem import Problem
from evomerge.testing.checkpoints import write_tiny_llama

OBJECTIVES = ("letters.exact_match", "digits.exact_match")
DOCUMENTS = 24


def write_task(folder: Path, name: str, characters: str) -> None:
    """Write an lm-eval task over a JSON-lines file beside it."""
    rows = [{"question": f"w{index % 29} {characters}", "answer": f"w{index % 7}"} for index in range(4 * DOCUMENTS)]
    rows = [{**row, "number": index} for index, row in enumerate(rows)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: [' '], do_sample: false, max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )


def write_problem(folder: Path) -> Path:
    """Write three models, two tasks and a suite; return the folder."""
    for seed, alias in enumerate(("base", "letters", "digits")):
        write_tiny_llama(folder / alias, seed=seed)
    (folder / "tasks").mkdir()
    write_task(folder / "tasks", "letters", "a")
    write_task(folder / "tasks", "digits", "1")
    (folder / "suite.yaml").write_text(
        "suite: 1\ninclude: tasks\ntasks: [{task: letters}, {task: digits}]\n"
        "splits: {search: 0.4, validation: 0.3, test: 0.3}\n"
    )
    return folder


def small_search(folder: Path, *, evaluations: int, seed: int = 0, **more: Any) -> RunConfig:
    """Return a generational CMA-ES search over the problem in `folder`."""
    data = {
        "name": "small",
        "sources": {alias: {"model": alias} for alias in ("base", "letters", "digits")},
        "base": "base",
        "space": {"method": "task_arithmetic", "groups": {"layers": 2}},
        "fitness": {"suite": "suite.yaml", "objectives": list(OBJECTIVES)},
        "search": {"searcher": "cma_es", "seed": seed, "options": {"population": 4}},
        "executor": {"kind": "inline"},
        "budget": {"evaluations": evaluations},
        "finalists": 2,
        **more,
    }
    return resolve_config(Document(data=data, name="search.yaml", lines={}), folder)


class AnalyticScorer:
    """Scores a recipe by its text: deterministic, per sample, in microseconds; every seventh or so is infeasible."""

    infeasible_below = 36
    """So many of 256 recipes give no working model."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def score(self, recipe: Recipe, split: Split) -> Evaluation:
        """Return per-sample scores that are a hash of the recipe's identity."""
        digest = hashlib.sha256(f"{self._problem.identity(recipe)}{split}".encode()).digest()
        if digest[0] < self.infeasible_below:
            return Evaluation(split=split, infeasible="the weights are not finite")
        draw = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
        samples = {name: (draw.random(DOCUMENTS) < digest[1] / 255).astype(np.float64) for name in OBJECTIVES}
        documents = {name.split(".")[0]: tuple(f"{split}{index}" for index in range(DOCUMENTS)) for name in OBJECTIVES}
        return Evaluation(split=split, samples=samples, documents=documents)

    def close(self) -> None:
        """Nothing is held."""


def analytic_executor(problem: Problem) -> InlineExecutor:
    """Return an executor that scores in this process with the analytic scorer."""
    return InlineExecutor(problem.config.executor, lambda: AnalyticScorer(problem))
