"""Does merging the embedded models behave as the field says? The evidence, over training seeds.

``python benchmarks/zoo.py --seeds 0 1 2 --models FOLDER`` trains what FOLDER does not hold yet (``seed-0/base`` and
so on), then measures the parents, the uniform average, the best single-coefficient task-arithmetic merge and a
merge searched by CMA-ES, on held-out items that the search never saw. ``--json FILE`` keeps the figures.

Merging here is plain arithmetic on state dicts, so that the evidence does not rest on evomerge's own merge code.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cma
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from evomerge.demo.evaluate import encode, exact_match
from evomerge.demo.skills import CROSS_DOMAIN, SKILLS
from evomerge.demo.tasks import TASKS, documents
from evomerge.demo.train import EXPERTS, train_all

Array = NDArray[np.float64]
Hits = dict[str, Array]
"""Task to an array of 0 and 1, one for each of its items."""

NUM_SEARCH, NUM_VALIDATION, NUM_TEST = 180, 120, 900
"""Items a task that the search scores, that choose among its ten best, and that nothing but the table sees."""

SWEEP = [round(0.1 * step, 1) for step in range(1, 21)]
"""The single coefficients that are tried."""

SIGMA = 0.12
"""The search's first step, in units of the coefficients; with 0.25 it lost its start on one of three seeds."""


@dataclass(frozen=True)
class Row:
    """One model's accuracy on the test items."""

    seed: int
    model: str
    mean: float
    stderr: float
    tasks: dict[str, float]
    note: str = ""


class Items:
    """The three disjoint splits of every task's held-out items, encoded."""

    def __init__(self, seed: int) -> None:
        self.splits: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        drawn = {
            name: documents(skill, NUM_SEARCH + NUM_VALIDATION + NUM_TEST, 1000 + seed) for name, skill in TASKS.items()
        }
        start = 0
        for split, count in (("search", NUM_SEARCH), ("validation", NUM_VALIDATION), ("test", NUM_TEST)):
            self.splits[split] = {n: encode(items[start : start + count]) for n, items in drawn.items()}
            start += count

    def hits(self, model: LlamaForCausalLM, split: str, tasks: Iterable[str]) -> Hits:
        """Score a model on one split."""
        found = self.splits[split]
        return {name: exact_match(model, *found[name]).numpy().astype(np.float64) for name in tasks}


class Merger:
    """Builds ``base + sum_i c_i tau_i`` in place, with one coefficient a group of weights and expert."""

    def __init__(self, folder: Path) -> None:
        self.model = LlamaForCausalLM.from_pretrained(folder / "base")
        self.base = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        experts = [LlamaForCausalLM.from_pretrained(folder / name).state_dict() for name in EXPERTS]
        self.deltas = [{n: weight - self.base[n] for n, weight in e.items()} for e in experts]
        labels = sorted({_group(name) for name in self.base})
        self.index = {name: labels.index(_group(name)) for name in self.base}
        self.shape = (len(labels), len(experts))

    def build(self, coefficients: Array) -> LlamaForCausalLM:
        """Merge with coefficients of shape `self.shape` (or what broadcasts to it)."""
        full = np.broadcast_to(coefficients, self.shape)
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                weight.copy_(self.base[name])
                for expert, delta in enumerate(self.deltas):
                    weight.add_(delta[name], alpha=float(full[self.index[name], expert]))
        return self.model


def _group(name: str) -> str:
    """Return the group of weights that shares a coefficient: a layer's attention or MLP, embeddings, head."""
    if ".layers." not in name:
        return "embeddings" if "embed" in name else "head"
    layer = name.split(".layers.")[1].split(".", maxsplit=1)[0]
    return f"{layer} {'attention' if 'attn' in name or 'input_layernorm' in name else 'mlp'}"


def mean(hits: Hits) -> float:
    """Return the mean over tasks of the accuracy."""
    return float(np.mean([values.mean() for values in hits.values()]))


def stderr(hits: Hits) -> float:
    """Return the binomial standard error of the mean over tasks."""
    parts = [values.mean() * (1 - values.mean()) / len(values) for values in hits.values()]
    return math.sqrt(sum(parts)) / len(parts)


def paired_gap(better: Hits, worse: Hits) -> tuple[float, float]:
    """Return the mean difference over the same items, and its standard error."""
    gaps = [better[name] - worse[name] for name in better]
    spread = math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)) / len(gaps)
    return float(np.mean([gap.mean() for gap in gaps])), spread


def best_single(score: Callable[[Array], float]) -> float:
    """Return the single coefficient that scores best on the search items."""
    return max(SWEEP, key=lambda coefficient: score(np.array(coefficient)))


def search(
    score: Callable[[Array], float],
    validate: Callable[[Array], float],
    shape: tuple[int, int],
    *,
    start: float,
    evaluations: int,
    seed: int,
) -> Array:
    """Search the coefficients with CMA-ES, and let the validation items choose among the ten best."""
    options = {"seed": seed + 1, "bounds": [-0.5, 2.0], "popsize": 12, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(np.full(shape, start).ravel(), SIGMA, options)
    seen: list[tuple[float, Array]] = []
    while len(seen) + 12 <= evaluations:
        points = strategy.ask()
        values = [score(point.reshape(shape)) for point in points]
        strategy.tell(points, [-value for value in values])
        seen += [(value, point.reshape(shape)) for value, point in zip(values, points, strict=True)]
    finalists = sorted(seen, key=lambda pair: -pair[0])[:10]
    finalists.append((score(favourite := strategy.mean.reshape(shape)), favourite))
    weighted = [(v * NUM_SEARCH + validate(p) * NUM_VALIDATION, i) for i, (v, p) in enumerate(finalists)]
    return finalists[max(weighted)[1]][1]


def study(folder: Path, seed: int, evaluations: int, aim: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Measure one training seed, with the search aimed at the mean over the tasks in `aim`.

    Returns:
        The rows of the table, and one line for each comparison of the searched merge with a rival.
    """
    items, merger = Items(seed), Merger(folder)

    def on(split: str) -> Callable[[Array], float]:
        return lambda point: mean(items.hits(merger.build(point), split, aim))

    score, validate = on("search"), on("validation")
    single = best_single(score)
    found = search(score, validate, merger.shape, start=single, evaluations=evaluations, seed=seed)
    models: dict[str, tuple[Array, str]] = {"base": (np.array(0.0), "")}
    for index, name in enumerate(EXPERTS):
        models[name] = (np.eye(len(EXPERTS))[index], "")
    models["uniform average"] = (np.array(1 / len(EXPERTS)), "")
    models["best single coefficient"] = (np.array(single), f"{single:.1f}")
    models["searched"] = (found, f"{merger.shape[0]}x{merger.shape[1]} coefficients")
    rows, hits = [], {}
    for name, (point, note) in models.items():
        everything = items.hits(merger.build(point), "test", TASKS)
        hits[name] = {task: everything[task] for task in aim}
        accuracy = {task: float(values.mean()) for task, values in everything.items()}
        rows.append(Row(seed, name, mean(hits[name]), stderr(hits[name]), accuracy, note))
        print(_line(rows[-1]), flush=True)
    verdicts = []
    for name in models:
        if name != "searched":
            gap, spread = paired_gap(hits["searched"], hits[name])
            verdicts.append(f"searched - {name}: {gap:+.3f} (s.e. {spread:.3f}, {gap / max(spread, 1e-9):.1f} s.e.)")
            print("   ", verdicts[-1], flush=True)
    return rows, verdicts


def _line(row: Row) -> str:
    tasks = "  ".join(f"{name} {value:.3f}" for name, value in row.tasks.items())
    return f"seed {row.seed}  {row.model:<24} mean {row.mean:.3f} +- {row.stderr:.3f}  {tasks}  {row.note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--models", type=Path, required=True, help="folder of the trained models; kept")
    parser.add_argument("--evaluations", type=int, default=200, help="a search, without the sweep")
    parser.add_argument("--aims", nargs="+", choices=["skills", "cross"], default=["skills", "cross"])
    parser.add_argument("--threads", type=int, default=1, help="another number rounds sums otherwise: other weights")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    aims = {"skills": tuple(SKILLS), "cross": tuple(CROSS_DOMAIN)}
    results = []
    for seed in options.seeds:
        folder = options.models / f"seed-{seed}"
        if not all((folder / name / "config.json").exists() for name in ("base", *EXPERTS)):
            train_all(seed, folder, progress=sys.stderr.isatty())
        for aim in options.aims:
            print(f"-- seed {seed}, search aimed at {aim}: {', '.join(aims[aim])}", flush=True)
            rows, verdicts = study(folder, seed, options.evaluations, aims[aim])
            results.append({"seed": seed, "aim": aim, "rows": [asdict(r) for r in rows], "verdicts": verdicts})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
