"""Natural niches on handwritten digits: the experiment of Abrantes et al. 2025 (arXiv:2508.16204), and its speed.

    python benchmarks/natural_niches_digits.py [--groups 01234,56789] [--seeds 0 1 2] [--evaluations 10000]
                                               [--searchers niches,genetic] [--layout torch] [--json FILE]
    python benchmarks/natural_niches_digits.py --from-scratch [--evaluations 50000]
    python benchmarks/natural_niches_digits.py --speed [--threads 2] [--reference FOLDER [--reference-python PYTHON]]

The data are scikit-learn's 8x8 digits: the first 80 % train, the last 20 % test, pixels as they are. The network is
64-256-10 with ReLU, 19,210 weights. Each specialist takes 10 full-batch Adam(3e-3) steps on its digits. One evaluation
is one child scored on all training images; the sources' own do not count. What is told is the accuracy on the test
images of the archive member that is best on the training images.

How good a pair of specialists is to mix depends on the weights that they started from. `--pair paper` draws these as
JAX 0.4, which the authors pin, does for their seed; `jax` as JAX does since 0.5, and `torch` from PyTorch's generator.

The flat order of the weights decides what a split keeps together: `--layout paper` has the matrices input by output, as
the authors' code has them, so that a split lies between pixels; `torch` has PyTorch's, so that it lies between hidden
units.

`--reference` names a folder with github.com/SakanaAI/natural_niches, run as it is by a Python that has jax,
optax, cma, scikit-learn and tqdm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import threefry
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

import evomerge
from evomerge.run.state_dicts import Scored, StateDictSearch

CHECKPOINTS = (100, 500, 1000, 5000, 10000, 20000, 50000)
TARGETS = (0.60, 0.65, 0.68)
BLOCK = 480
"""Images at a time: their hidden layer stays in the processor's cache beside all that a search needs."""
SEED = 42
"""Of the specialists, in the authors' code too."""
NICHES: dict[str, Any] = {"archive": 20}
GENETIC: dict[str, Any] = {**NICHES, "alpha": 0.0, "attraction": False}

PRE_TRAINED: dict[str, dict[str, Any]] = {
    "niches": {"options": NICHES},
    "no_attraction": {"options": {**NICHES, "attraction": False}},
    "no_split": {"options": {**NICHES, "split": False}},
    "genetic": {"options": GENETIC},
    "map_elites": {"searcher": "map_elites", "options": {"cells": [10, 10], "measures": ["odd", "even"]}},
    "cma_es": {"searcher": "cma_es", "chunks": 16},
}
"""Without crossover and without mutation every child is its parent: that ablation has a meaning from scratch alone."""
NOISE = {"mutation": 0.01}
FROM_SCRATCH: dict[str, dict[str, Any]] = {
    "niches": {"options": {**NICHES, **NOISE}},
    "no_crossover": {"options": {**NICHES, **NOISE, "crossover": False}},
    "genetic": {"options": {**GENETIC, **NOISE}},
    "genetic_no_crossover": {"options": {**GENETIC, **NOISE, "crossover": False}},
    "map_elites": {
        "searcher": "map_elites",
        "options": {"cells": [10, 10], "measures": ["odd", "even"], **NOISE},
    },
    "separable_cma_es": {},
}

StateDict = dict[str, Tensor]
SHAPES = {"paper": {"1.weight": (64, 256), "2.bias": (256,), "3.weight": (256, 10), "4.bias": (10,)}}
SHAPES["torch"] = {"1.bias": (256,), "1.weight": (256, 64), "2.bias": (10,), "2.weight": (10, 256)}
"""Name -> shape, in the order of the flat vector."""


class Digits:
    """Images and labels, and what a network makes of them."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        count = int(len(images) * 0.8)
        self.images = torch.tensor(images, dtype=torch.float32).split([count, len(images) - count])
        self.labels = torch.tensor(labels).split([count, len(labels) - count])
        self._blocks = [part.split(BLOCK) for part in self.images]
        self._logits = [torch.empty(len(part), 10) for part in self.images]
        self._hidden = torch.empty(BLOCK, 256)
        self.parity = [torch.nonzero(self.labels[0] % 2 == rest).flatten().numpy() for rest in (1, 0)]

    def correct(self, weights: Mapping[str, Tensor], part: int = 0) -> Tensor:
        """Return for each image, of the training (0) or test part (1), whether the network is right."""
        return self.logits(weights, part).max(dim=1).indices == self.labels[part]

    def logits(self, weights: Mapping[str, Tensor], part: int = 0) -> Tensor:
        """Return the network's logits, in memory that the next call overwrites."""
        first_bias, first, second_bias, second = matrices(weights)
        for images, logits in zip(self._blocks[part], self._logits[part].split(BLOCK), strict=True):
            hidden = self._hidden[: len(images)]
            torch.addmm(first_bias, images, first, out=hidden)
            hidden.relu_()
            torch.addmm(second_bias, hidden, second, out=logits)
        return self._logits[part]

    def by_parity(self, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the same for the odd and for the even digits of the training part."""
        correct = self.correct(weights).numpy()
        return {"odd": correct[self.parity[0]], "even": correct[self.parity[1]]}

    @property
    def accuracy(self) -> str:
        """The accuracy on all training images as an expression over `by_parity`."""
        odd, even = (len(indices) for indices in self.parity)
        return f"({odd} * odd + {even} * even) / {odd + even}"


def matrices(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return bias and matrix (input by output) of both layers, of weights in either layout."""
    if "4.bias" in weights:
        return weights["2.bias"], weights["1.weight"], weights["4.bias"], weights["3.weight"]
    return weights["1.bias"], weights["1.weight"].T, weights["2.bias"], weights["2.weight"].T


def forward(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return the network's logits as `Digits.logits` does, for training."""
    first_bias, first, second_bias, second = matrices(weights)
    return torch.addmm(second_bias, torch.addmm(first_bias, images, first).relu(), second)


def unflatten(vector: Tensor, layout: str) -> StateDict:
    """Return a flat vector as weights of a layout."""
    parts = vector.split([math.prod(shape) for shape in SHAPES[layout].values()])
    return {name: part.view(shape) for (name, shape), part in zip(SHAPES[layout].items(), parts, strict=True)}


def in_layout(weights: StateDict, layout: str) -> StateDict:
    """Return weights of the paper's layout in another one."""
    if layout == "paper":
        return weights
    first, second = weights["1.weight"].T.contiguous(), weights["3.weight"].T.contiguous()
    return {"1.bias": weights["2.bias"], "1.weight": first, "2.bias": weights["4.bias"], "2.weight": second}


def random_model(seed: int) -> StateDict:
    """Return weights from N(0, 0.01^2), in the paper's layout."""
    return unflatten(torch.randn(19210, generator=torch.Generator().manual_seed(seed)) * 0.01, "paper")


def starts(count: int, pair: str) -> list[StateDict]:
    """Return weights from N(0, 0.01^2) for each specialist, in the paper's layout; see `--pair`."""
    if pair == "torch":
        return [random_model(SEED + index) for index in range(count)]
    new = pair == "jax"
    keys = threefry.split(threefry.seed_key(SEED), count, partitionable=new)
    return [unflatten(threefry.normal(key, 19210, partitionable=new) * 0.01, "paper") for key in keys]


def specialist(digits: Digits, group: str, start: StateDict) -> StateDict:
    """Train a model for ten steps on the digits of a group; in the paper's layout."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    images, labels = digits.images[0], digits.labels[0]
    mine = torch.isin(labels, torch.tensor([int(digit) for digit in group]))
    adam = torch.optim.Adam(weights.values(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(10):
            adam.zero_grad()
            functional.cross_entropy(forward(weights, images[mine]), labels[mine]).backward()
            adam.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


@dataclass
class Run:
    """One search: what it reached and when."""

    seed: int
    curve: dict[int, float] = field(default_factory=dict)
    """Evaluations -> accuracy on the test images."""
    reached: dict[float, int] = field(default_factory=dict)
    """Accuracy on the test images -> evaluations until it was first had."""
    train: float = 0.0
    """Accuracy on the training images in the end."""
    seconds: float = 0.0


class Follower:
    """Notes the test accuracy of the best member after every evaluation."""

    def __init__(self, digits: Digits, run: Run) -> None:
        self._digits = digits
        self._run = run
        self._model: object = None
        self._test = 0.0
        self._done = 0

    def note(self, model: object, weights: Callable[[], Mapping[str, Tensor]], *, evaluations: int = 1) -> None:
        """Take note of which model is the best after so many more evaluations."""
        if model != self._model:
            self._model = model
            self._test = float(self._digits.correct(weights(), 1).float().mean())
        before, self._done = self._done, self._done + evaluations
        for target in TARGETS:
            if self._test >= target:
                self._run.reached.setdefault(target, self._done)
        for checkpoint in CHECKPOINTS:
            if before < checkpoint <= self._done:
                self._run.curve[checkpoint] = self._test


def follow(
    digits: Digits, sources: Mapping[str, StateDict], method: dict[str, Any], seed: int, evaluations: int
) -> Run:
    """Run one search with evomerge."""
    arguments: dict[str, Any] = {"seed": seed, **method}
    if method.get("searcher") == "map_elites":
        search = evomerge.Search.over(sources, digits.by_parity, objectives=[digits.accuracy], **arguments)
    else:
        search = evomerge.Search.over(sources, digits.correct, **arguments)
    run, breeds = Run(seed), method.get("searcher") != "cma_es"
    follower = Follower(digits, run)

    def note(scored: Scored) -> None:
        if breeds and scored.candidate.id < len(sources):
            return
        best = _best(search)
        follower.note(best.candidate.id, best.state_dict)

    start = time.perf_counter()
    search.run(evaluations + breeds * len(sources), callback=note, progress=False)
    run.seconds = time.perf_counter() - start
    run.train = _value(_best(search))
    return run


def _best(search: StateDictSearch) -> Scored:
    return max(search.population, key=_value, default=search.best)


def _value(scored: Scored) -> float:
    return next(iter(scored.objectives.values()))


def separable_cma_es(digits: Digits, seed: int, evaluations: int, layout: str) -> Run:
    """Run pycma with a diagonal covariance on all weights, population 20, first step 0.01."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about plots, which are not drawn
        import cma

    rng = np.random.default_rng(seed)
    options = {"popsize": 20, "CMA_diagonal": True, "verbose": -9, "seed": math.nan, "randn": rng_normal(rng)}
    strategy = cma.CMAEvolutionStrategy(rng.standard_normal(19210) * 0.01, 0.01, options)
    run = Run(seed)
    follower = Follower(digits, run)
    best, best_weights = -1.0, np.zeros(19210)
    start = time.perf_counter()
    for generation in range(evaluations // 20):
        points = strategy.ask()
        values = [float(digits.correct(_weights(point, layout)).float().mean()) for point in points]
        strategy.tell(points, [-value for value in values])
        if max(values) > best:
            best, best_weights = max(values), points[int(np.argmax(values))].copy()
            model = generation
        follower.note(model, partial(_weights, best_weights, layout), evaluations=20)
    run.seconds, run.train = time.perf_counter() - start, best
    return run


def rng_normal(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Return `numpy.random.randn` of a generator, as pycma calls it."""
    return lambda *shape: rng.standard_normal(shape)


def _weights(point: np.ndarray, layout: str) -> StateDict:
    return unflatten(torch.from_numpy(point.astype(np.float32)), layout)


def table(results: Mapping[str, Sequence[Run]]) -> str:
    """Return a Markdown table: test accuracy in percent with standard errors, and median evaluations to targets."""
    known = [point for point in CHECKPOINTS if any(point in run.curve for runs in results.values() for run in runs)]
    head = ["", *(f"@{point:,}" for point in known), *(f"to {target:.0%}" for target in TARGETS), "s a run"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, runs in results.items():
        cells = [_mean([100 * run.curve[point] for run in runs if point in run.curve]) for point in known]
        cells += [_median([run.reached.get(target) for run in runs]) for target in TARGETS]
        cells.append(f"{statistics.mean(run.seconds for run in runs):.1f}")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def _median(values: Sequence[int | None]) -> str:
    reached = [value for value in values if value is not None]
    if not reached:
        return f"0 of {len(values)}"
    middle = statistics.median(math.inf if value is None else value for value in values)
    text = "over half never" if math.isinf(middle) else f"{middle:.0f}"
    return text if len(reached) == len(values) else f"{text} ({len(reached)} of {len(values)})"


def experiment(arguments: argparse.Namespace) -> None:
    """Run every searcher with every seed, and print the table."""
    digits = Digits()
    methods = FROM_SCRATCH if arguments.from_scratch else PRE_TRAINED
    wanted = arguments.searchers.split(",") if arguments.searchers else list(methods)
    if unknown := set(wanted) - set(methods):
        sys.exit(f"--searchers: {', '.join(sorted(unknown))} is none of {', '.join(methods)}")
    trained = {} if arguments.from_scratch else sources_of(arguments, digits)
    results: dict[str, list[Run]] = {}
    for seed in arguments.seeds:
        for name in wanted:
            sources = trained or {
                f"random{index}": in_layout(random_model(2 * seed + index), arguments.layout) for index in range(2)
            }
            if name == "separable_cma_es":
                run = separable_cma_es(digits, seed, arguments.evaluations, arguments.layout)
            else:
                run = follow(digits, sources, methods[name], seed, arguments.evaluations)
            results.setdefault(name, []).append(run)
            _save(arguments, results)
        print(f"seed {seed} of {len(arguments.seeds)} is done", file=sys.stderr, flush=True)
    print(f"\n{table(results)}")


def _save(arguments: argparse.Namespace, results: Mapping[str, Sequence[Run]]) -> None:
    if arguments.json:
        data = {
            "arguments": {
                key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
            },
            "results": {name: [asdict(run) for run in runs] for name, runs in results.items()},
        }
        arguments.json.write_text(json.dumps(data, indent=1))


def sources_of(arguments: argparse.Namespace, digits: Digits) -> dict[str, StateDict]:
    """Return the specialists, by the digits they know, and print how good they are."""
    groups = arguments.groups.split(",")
    models = [
        specialist(digits, group, start)
        for group, start in zip(groups, starts(len(groups), arguments.pair), strict=True)
    ]
    sources = {group: in_layout(model, arguments.layout) for group, model in zip(groups, models, strict=True)}
    for group, model in sources.items():
        parts = [float(digits.correct(model, part).float().mean()) for part in (0, 1)]
        print(f"specialist of {group}: {parts[0]:.1%} of the training images, {parts[1]:.1%} of the test images")
    return sources


REFERENCE = """
import os, sys, time
os.environ["JAX_PLATFORM_NAME"] = "cpu"
sys.path.insert(0, sys.argv[1])
from natural_niches_fn import run_natural_niches
for passes in (100, int(sys.argv[2])):
    start = time.perf_counter(), time.process_time()
    run_natural_niches(1, 20, passes, False, False, False, False, True)
    print("seconds", time.perf_counter() - start[0], time.process_time() - start[1])
"""


@dataclass(frozen=True)
class Rate:
    """How fast something is."""

    per_second: float
    cpu_ms: float
    """Of processor time each, over all threads: what a busy machine does not change so much."""


def timed(work: Callable[[], object], times: int) -> Rate:
    """Time so many calls in one."""
    start = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return Rate(times / seconds, 1000 * cpu / times)


def reference_rate(folder: Path, python: str, passes: int) -> Rate:
    """Time the authors' code, which is compiled before; it tests the best member after each child."""
    command = [python, "-c", REFERENCE, str(folder.resolve()), str(passes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    last = next(line for line in reversed(output.splitlines()) if line.startswith("seconds"))
    seconds, cpu = map(float, last.split()[1:])
    return Rate(passes / seconds, 1000 * cpu / passes)


def speed(arguments: argparse.Namespace) -> None:
    """Time the network alone, the search, and the reference, in turns, and print the medians."""
    digits = Digits()
    sources = sources_of(arguments, digits)
    search = evomerge.Search.over(sources, digits.correct, options=NICHES)
    search.run(1000, progress=False)
    weights = next(iter(sources.values()))
    rates: dict[str, list[Rate]] = {}
    for _ in range(arguments.rounds):
        floor = timed(lambda: [digits.logits(weights) for _ in range(1000)], 1000)
        rates.setdefault("floor", []).append(floor)
        rates.setdefault("evomerge", []).append(timed(lambda: search.run(1000, progress=False), 1000))
        if arguments.reference:
            reference = reference_rate(arguments.reference, arguments.reference_python, 1000)
            rates.setdefault("reference", []).append(reference)
    print(f"\n{os.cpu_count()} cores, {arguments.threads} torch threads, medians of {arguments.rounds} rounds in turns")
    print("\n| | a second | lowest to highest | ms of CPU each |\n|---|---|---|---|")
    for name, each in rates.items():
        speeds = [rate.per_second for rate in each]
        cpu = statistics.median(rate.cpu_ms for rate in each)
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        print(f"| {name} | {statistics.median(speeds):,.0f} | {spread} | {cpu:.2f} |")
    if arguments.json:
        data = {name: [asdict(rate) for rate in each] for name, each in rates.items()}
        arguments.json.write_text(json.dumps({"threads": arguments.threads, "rates": data}, indent=1))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="01234,56789", help="which digits each specialist learns")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the searches; the specialists stay the same")
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--searchers", help="names, with commas between them; left out: all")
    parser.add_argument("--layout", choices=list(SHAPES), default="paper")
    parser.add_argument("--from-scratch", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--pair", choices=["paper", "jax", "torch"], default="paper", help="where specialists start")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed test")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--reference-python", default=sys.executable)
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or list(range(5 if arguments.from_scratch else 10))
    arguments.evaluations = arguments.evaluations or (50000 if arguments.from_scratch else 10000)
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    if arguments.speed:
        speed(arguments)
    else:
        experiment(arguments)


if __name__ == "__main__":
    main()
