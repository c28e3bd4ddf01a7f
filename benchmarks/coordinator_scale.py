"""What the coordinator itself costs a search with many workers: the workers are simulated, all else is real.

    python benchmarks/coordinator_scale.py [--workers 10 100 1000 4000] [--searcher random cma_es portfolio]
                                           [--evaluations 20000] [--mean 60] [--sigma 0.5] [--layers 32] [--seed 0]
                                           [--folder FOLDER] [--json FILE]

A search over four small models of `--layers` layers runs with the real session, coordinator, journal (each line on disk
before a worker hears of it), score files, searcher and the plain live view. Only scoring is simulated: a worker takes a
log-normal time (`--mean` seconds, `--sigma` of its logarithm) and gives 0 or 1 for each of `--documents` documents of
three tasks. The workers' clock jumps from one end of an evaluation to the next, and in between it runs on by the real
seconds that the coordinator took: while it is busy, workers that are done stand idle.

- *busy*: seconds that workers scored over workers times seconds, from the start until the last candidate of the budget
  is given out; what comes after is the budget's end and no fault of the coordinator. *steady*: the same from the moment
  on at which every worker has had work, so that it does not depend on the length of the run.
- *ms*: seconds of the coordinator's process from one wait for results to the next, over the evaluations that it
  settled in between: mean, median and 99th percentile over evaluations. *cpu ms*: the mean of its processor's seconds,
  which programs beside it do not lengthen much; waiting for the disk is not among them.
- *rss*: the largest memory of the coordinator's process, torch and all, and by how much it grew over the search.
- *resume*: seconds of `evomerge resume` of the finished run, with twice its budget, until it gives out the first
  candidate; *status*: of opening the run and asking for its status. Both in fresh processes, imports not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cli.live import LiveView
from evomerge.cluster.types import Completed, Event, Job
from evomerge.demo.run import CONFIG
from evomerge.fitness.types import Evaluation
from evomerge.run.config import RunConfig
from evomerge.run.load import load_config
from evomerge.run.session import resume, start
from evomerge.run.view import Run
from evomerge.testing.checkpoints import write_tiny_llama
from evomerge.testing.scorers import weights

ALIASES = ("base", "math", "japanese", "letters")
TASKS = ("sums", "japanese", "letters")
TARGETS = (0.2, 0.5, 0.8)
"""Weights at which each task is solved best: the three pull apart."""
SEARCHERS = ("random", "natural_niches", "nsga_ii", "cma_es", "portfolio")


def search_file(models: Path, searcher: str, workers: int, evaluations: int, seed: int) -> RunConfig:
    """Return the search over models in a folder; populations are as large as the workers need."""
    cma_es: dict[str, Any] = {"population": max(12, workers), "asynchronous": True, "tolerance": 0}
    search: dict[str, Any] = {"searcher": searcher, "seed": seed, "options": {}}
    if searcher == "cma_es":
        search["options"] = cma_es
    if searcher == "portfolio":
        stages = [{"searcher": "natural_niches"}, {"searcher": "cma_es", "options": {**cma_es, "population": 12}}]
        search["options"] = {"together": True, "stages": stages}
    piecewise = searcher in ("natural_niches", "portfolio")
    space = {"kind": "piecewise", "chunks": 16} if piecewise else {"method": "task_arithmetic", "groups": {"layers": 2}}
    config = load_config(CONFIG, ["references.parents=false", "references.uniform=false", "references.coefficients=0"])
    data = config.model_dump(mode="json", exclude={"sources", "space", "search", "budget", "executor", "finalists"})
    data["sources"] = {alias: {"model": str(models / alias)} for alias in ALIASES}
    settings = {"search": search, "space": space, "budget": {"evaluations": evaluations}, "finalists": 0}
    return RunConfig.model_validate({**data, **settings, "executor": {"kind": "inline"}})


class SimulatedWorkers:
    """An executor whose workers end in the order of a simulated clock, and that measures who waits for whom.

    Args:
        workers: how many there are.
        mean: seconds an evaluation takes on average.
        sigma: standard deviation of its logarithm.
        documents: a task.
        seed: of durations; scores follow from the recipe.
    """

    def __init__(self, workers: int, *, mean: float, sigma: float, documents: int, seed: int) -> None:
        self.capacity = workers
        self._durations = np.random.Generator(np.random.Philox(seed))
        self._scale = (float(np.log(mean) - sigma**2 / 2), sigma)
        self._difficulty = np.random.Generator(np.random.Philox(1)).random((len(TASKS), documents))
        self._hashes = {task: tuple(f"{task}{index:05d}" for index in range(documents)) for task in TASKS}
        self._running: list[tuple[float, int, int, Job, float]] = []
        self._idle = list(range(workers))
        self._submitted = 0
        self._turn = 0
        self.now_s = 0.0
        self.spans: list[tuple[float, float]] = []
        """Begin and end of every evaluation."""
        self.last_begin_s = 0.0
        self.turns: list[tuple[float, int]] = []
        """Real seconds that the coordinator took between two waits, and the evaluations that it had to settle."""
        self._spent_s = 0.0
        self.cpu_s = 0.0
        """Seconds of the processor that the coordinator took."""
        self._mark, self._cpu_mark = time.perf_counter(), time.process_time()

    @property
    def open_jobs(self) -> int:
        """How many jobs are being scored."""
        return len(self._running)

    def resize(self, workers: int) -> None:
        """There is no need to."""
        self.capacity = workers

    def submit(self, job: Job) -> None:
        """Let an idle worker score."""
        with self._own_time():
            begin, end = self.now_s, self.now_s + self._durations.lognormal(*self._scale)
            self._submitted += 1
            heapq.heappush(self._running, (end, self._submitted, self._idle.pop(), job, end - begin))
            if job.split == "search":
                self.spans.append((begin, end))
                self.last_begin_s = begin

    def wait(self, timeout_s: float) -> list[Event]:  # noqa: ARG002  the clock jumps to the next result
        """Return what has ended by now, or else what ends next."""
        with self._own_time():
            self.turns.append((self._spent_s, self._turn))
            self._spent_s = 0.0
            self.now_s = max(self.now_s, self._running[0][0])
            events: list[Completed] = []
            while self._running and self._running[0][0] <= self.now_s:
                _, _, worker, job, seconds = heapq.heappop(self._running)
                self._idle.append(worker)
                events.append(Completed(job, self._score(job, seconds), 1, f"worker-{worker}", seconds))
            self._turn = sum(event.job.split == "search" for event in events)
            return list(events)

    def status(self) -> dict[str, float | int | str]:
        """Return what the live view shows."""
        return {"workers": self.capacity, "running": len(self._running)}

    def close(self) -> None:
        """Nothing is held."""

    def busy_share(self, since_s: float = 0.0) -> float:
        """Return the share of the workers' seconds that was scoring, until the last candidate was given out."""
        spans = np.clip(np.array(self.spans), since_s, self.last_begin_s)
        return float((spans[:, 1] - spans[:, 0]).sum() / (self.capacity * (self.last_begin_s - since_s)))

    def all_began_s(self) -> float:
        """Return when every worker had had work."""
        return self.spans[self.capacity - 1][0]

    @contextlib.contextmanager
    def _own_time(self) -> Iterator[None]:
        """Let the clock run by what the coordinator took since the last call, and not by what the simulation takes."""
        spent = time.perf_counter() - self._mark
        self.cpu_s += time.process_time() - self._cpu_mark
        self.now_s += spent
        self._spent_s += spent
        yield
        self._cpu_mark = time.process_time()
        self._mark = time.perf_counter()

    def _score(self, job: Job, seconds: float) -> Evaluation:
        numbers = weights(job.recipe)
        samples = {
            f"{task}.exact_match": (row < np.exp(-4 * np.mean((numbers - target) ** 2))).astype(np.float64)
            for task, target, row in zip(TASKS, TARGETS, self._difficulty, strict=True)
        }
        # One more, so that no two recipes share a score file.
        facts = {"sum": float(numbers.sum())}
        return Evaluation(job.split, samples, self._hashes, facts, seconds={"score": seconds})


class FirstCandidateError(Exception):
    """A resumed search has given out its first candidate."""


class Impatient(SimulatedWorkers):
    """Workers that leave at the first candidate."""

    def submit(self, job: Job) -> None:
        """Leave."""
        raise FirstCandidateError(job.key)


def memory_mib() -> float:
    """Return the largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def search(folder: Path, searcher: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one search and return its figures."""
    for number, alias in enumerate(ALIASES):
        write_tiny_llama(folder.parent / alias, number, layers=options.layers)
    config = search_file(folder.parent, searcher, workers, options.evaluations, options.seed)
    simulated: SimulatedWorkers | None = None

    def executor(_: object) -> SimulatedWorkers:
        nonlocal simulated
        simulated = _workers(workers, options)
        return simulated

    before_mib = memory_mib()
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), LiveView(folder, plain=True) as view:
        start(config, folder, observer=view, executor=executor)
    real_s = time.perf_counter() - began
    if simulated is None:
        raise RuntimeError("the search had no executor")
    spent, settled = np.array([turn for turn in simulated.turns if turn[1]]).T
    per_evaluation = np.repeat(1e3 * spent / settled, settled.astype(int))
    return {
        "searcher": searcher,
        "workers": workers,
        "evaluations": options.evaluations,
        "busy": simulated.busy_share(),
        "steady": simulated.busy_share(simulated.all_began_s()),
        "ms_mean": float(per_evaluation.mean()),
        "cpu_ms": 1e3 * simulated.cpu_s / settled.sum(),
        "ms_median": float(np.median(per_evaluation)),
        "ms_p99": float(np.quantile(per_evaluation, 0.99)),
        "rss_mib": memory_mib(),
        "rss_grown_mib": memory_mib() - before_mib,
        "journal_mib": (folder / "journal.jsonl").stat().st_size / 2**20,
        "score_files": sum(1 for _ in (folder / "scores").iterdir()),
        "simulated_hours": simulated.now_s / 3600,
        "real_s": real_s,
    }


def resumed(folder: Path, searcher: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Resume the run up to its first new candidate and return the seconds."""
    del searcher
    began = time.perf_counter()
    with contextlib.suppress(FirstCandidateError):
        resume(
            folder,
            [f"budget.evaluations={2 * options.evaluations}"],
            executor=lambda _: Impatient(workers, mean=1, sigma=0.1, documents=1, seed=0),
        )
    return {"resume_s": time.perf_counter() - began, "resume_rss_mib": memory_mib()}


def looked_at(folder: Path, searcher: str, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Open the run and ask for its status."""
    del searcher, workers, options
    began = time.perf_counter()
    Run(folder).status()
    return {"status_s": time.perf_counter() - began}


def _workers(count: int, options: argparse.Namespace) -> SimulatedWorkers:
    return SimulatedWorkers(
        count, mean=options.mean, sigma=options.sigma, documents=options.documents, seed=options.seed
    )


Step = Callable[[Path, str, int, argparse.Namespace], dict[str, Any]]


def apart(step: Step, *arguments: Any) -> dict[str, Any]:
    """Call a step in a fresh process: memory and caches of one do not help the next."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, arguments)


COLUMNS = {
    "searcher": "{}", "workers": "{}", "evaluations": "{}", "busy": "{:.2%}", "steady": "{:.2%}", "ms_mean": "{:.2f}",
    "ms_median": "{:.2f}", "ms_p99": "{:.2f}", "cpu_ms": "{:.2f}", "rss_mib": "{:.0f}", "rss_grown_mib": "{:.0f}",
    "journal_mib": "{:.1f}", "resume_s": "{:.1f}", "status_s": "{:.1f}", "real_s": "{:.0f}",
}  # fmt: skip


def row(figures: dict[str, Any]) -> str:
    """Return a row of the table."""
    return "| " + " | ".join(form.format(figures[key]) for key, form in COLUMNS.items()) + " |"


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of every search in turn."""
    for searcher in options.searcher:
        for workers in options.workers:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                run = Path(folder) / "run"
                figures: dict[str, Any] = {}
                for step in (search, resumed, looked_at):
                    figures |= apart(step, run, searcher, workers, options)
                yield figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000, 4000])
    parser.add_argument("--searcher", nargs="+", choices=SEARCHERS, default=["random", "cma_es", "portfolio"])
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--mean", type=float, default=60.0, help="seconds an evaluation takes")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the logarithm of the seconds")
    parser.add_argument("--documents", type=int, default=100, help="a task")
    parser.add_argument("--layers", type=int, default=32, help="of the models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are written; a disk, to mean anything")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    found = []
    for figures in measure(options):
        found.append(figures)
        print(row(figures), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
