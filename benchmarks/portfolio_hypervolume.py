"""How fast searchers find the front between two skills: hypervolume against evaluations, on handwritten digits.

    python benchmarks/portfolio_hypervolume.py [--seeds 100 101 ...] [--evaluations 400] [--searchers niches,nsga_ii_20]
                                               [--pair FILE.npy] [--json FILE]

The data are scikit-learn's 8x8 digits, of which the first 80 % are used; the network is 64-256-10 with ReLU, 19,210
weights, flat in the order of its layers, each input by output. Two specialists start from weights of N(0, 0.01^2) and
take 10 full-batch Adam(3e-3) steps, one on digits 0-4, one on 5-9. Each seed has its own pair, unless `--pair` names
one: an array of shape (2, 19210), such as that of `get_pre_trained_models()` in github.com/SakanaAI/natural_niches.
The objectives are the accuracies on 0-4 and on 5-9; the hypervolume is that of all evaluated candidates over (0, 0).
Searchers of numbers mix 16 equal chunks linearly, each with a coefficient in [0, 1]; niches cross the same pair with
split points anywhere. The sources' own evaluations count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

import evomerge

CHECKPOINTS = (50, 100, 200, 400, 800)
SHAPES = {"0.weight": (64, 256), "1.bias": (256,), "2.weight": (256, 10), "3.bias": (10,)}
"""In the order of their names, which is that of the flat weights."""
NSGA_II: dict[str, Any] = {"searcher": "nsga_ii", "options": {"population": 20}}

State = dict[str, Tensor]
Floats = NDArray[np.float64]


def stage(searcher: str, evaluations: int, **options: Any) -> dict[str, Any]:
    """Return a stage of a portfolio that ends after so many evaluations."""
    return {"searcher": searcher, "options": options, "until": {"evaluations": evaluations}}


def portfolio(*stages: dict[str, Any], together: bool = False) -> tuple[str, dict[str, Any]]:
    """Return a portfolio as searcher and options."""
    return "portfolio", {"stages": list(stages), "together": together}


SEARCHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "nsga_ii_20": ("nsga_ii", {"population": 20}),
    "nsga_ii_50": ("nsga_ii", {"population": 50}),
    "tpe": ("tpe", {}),
    "cma_es": ("cma_es", {}),
    "niches": ("natural_niches", {"archive": 20}),
    "niches_50_nsga_ii": portfolio(stage("natural_niches", 50), NSGA_II),
    "niches_100_nsga_ii": portfolio(stage("natural_niches", 100), NSGA_II),
    "niches_10_50_nsga_ii": portfolio(stage("natural_niches", 50, archive=10), NSGA_II),
    "niches_100_cma_es": portfolio(stage("natural_niches", 100), {"searcher": "cma_es"}),
    "tpe_50_nsga_ii": portfolio(stage("tpe", 50), NSGA_II),
    "niches_and_nsga_ii": portfolio({"searcher": "natural_niches"}, NSGA_II, together=True),
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return images, float32 of shape (1437, 64), and labels, int64 of shape (1437,)."""
    images, labels = load_digits(return_X_y=True)
    count = int(0.8 * len(images))
    return torch.from_numpy(images[:count].astype(np.float32)), torch.from_numpy(labels[:count].astype(np.int64))


def logits(model: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the network's outputs, shape (images, 10)."""
    first, first_bias, second, second_bias = (model[name] for name in SHAPES)
    return torch.relu(images @ first + first_bias) @ second + second_bias


def specialist(seed: int, group: int) -> State:
    """Train a network on digits 0-4 (group 0) or 5-9 (group 1)."""
    rng = np.random.default_rng([seed, group])
    model = {
        name: torch.tensor(rng.normal(0, 0.01, shape), dtype=torch.float32, requires_grad=True)
        for name, shape in SHAPES.items()
    }
    images, labels = digits()
    mine = (labels >= 5) == bool(group)
    optimizer = torch.optim.Adam(model.values(), lr=3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(logits(model, images[mine]), labels[mine]).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.items()}


def unflattened(row: Floats) -> State:
    """Return a state dict of flat weights, shape (19210,)."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1]
    parts = np.split(row.astype(np.float32), ends)
    return {name: torch.tensor(part.reshape(shape)) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def correct(model: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Return one score of 0 or 1 a sample: of digits 0-4, and of 5-9."""
    images, labels = digits()
    right = (logits(model, images).argmax(dim=1) == labels).double()
    return {"low": right[labels < 5].numpy(), "high": right[labels >= 5].numpy()}


def run(name: str, seed: int, evaluations: int, pair: Floats | None) -> tuple[dict[int, float], float]:
    """Return the hypervolume after so many evaluations, and the seconds."""
    sources = [unflattened(row) for row in pair] if pair is not None else [specialist(seed, group) for group in (0, 1)]
    searcher, options = SEARCHERS[name]
    search = evomerge.Search.over(
        dict(zip(("low", "high"), sources, strict=True)), correct, searcher=searcher, options=options, seed=seed
    )
    began = time.perf_counter()
    search.run(evaluations, progress=False)
    points = -np.array([evaluated.objectives for evaluated in search.history])
    at = [count for count in CHECKPOINTS if count < evaluations] + [evaluations]
    volumes = {count: float(moocore.hypervolume(points[:count], ref=[0, 0])) for count in at}
    return volumes, time.perf_counter() - began


def main() -> None:
    """Run all searchers on all seeds, and print means and standard errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 110)))
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--searchers", default=",".join(SEARCHERS))
    parser.add_argument("--pair", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pair = None if args.pair is None else np.load(args.pair)
    table: dict[str, dict[str, Any]] = {}
    for name in args.searchers.split(","):
        results = [run(name, seed, args.evaluations, pair) for seed in args.seeds]
        columns = {count: [volumes[count] for volumes, _ in results] for count in results[0][0]}
        table[name] = {
            "hypervolume": columns,
            "milliseconds": statistics.mean(seconds for _, seconds in results) / args.evaluations * 1000,
        }
        cells = "  ".join(
            f"@{count} {statistics.mean(column):.3f} ± {np.std(column, ddof=1) / len(column) ** 0.5:.3f}"
            for count, column in columns.items()
        )
        print(f"{name:26} {cells}  {table[name]['milliseconds']:6.1f} ms an evaluation", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"seeds": args.seeds, "searchers": table}, indent=1))


if __name__ == "__main__":
    main()
