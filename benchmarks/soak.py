"""A long search on real Ray workers of a several-node cluster, with a random fault every few seconds.

    python benchmarks/soak.py [--evaluations 20000] [--minutes 60] [--seed 0] [--workers 2] [--scoring 0.05]
        [--every 5] [--run FOLDER] [--json]

The scorer is a known function of the recipe that takes `--scoring` seconds. Every `--every` seconds on average one of
these happens: a worker's process is killed, or stopped for longer than its time limit; scoring hangs, raises, raises
an error that another attempt may not meet, or finds no memory left; a node is killed, and another one joins. One
worker is spared all of it, so that its memory can be watched for the whole time. Printed every minute: evaluations,
how many a second, memory of the coordinator and of the workers, retries and faults; at the end also what was lost or
counted twice, and whether the journal verifies. Exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from evomerge.run.config import RunConfig
from evomerge.run.events import Asked, Evaluated, Event, Retried
from evomerge.run.journal import JournalReader
from evomerge.run.problem import open_problem
from evomerge.run.replay import verify
from tests.cluster.scripted import HarriedScorer, Identities
from tests.cluster.stage import Coordinator, Nodes, prepare_environment
from tests.run.small import small_search, write_problem

TIMEOUT_S = 3.0
FAULTS = {"kill": 4, "silence": 1, "hang": 2, "raise": 1, "unlucky": 3, "starve": 1, "node": 1}
"""How often each fault happens, in proportion."""


@dataclass(frozen=True, slots=True)
class Minute:
    """One line of the table; memory is resident memory in MiB."""

    minute: float
    evaluations: int
    per_second: float
    """Since the line before."""
    coordinator_mib: float
    spared_worker_mib: float
    workers_mib: float
    """The largest."""
    retries: int
    failed: int
    faults: int
    journal_mib: float
    load: float
    """Of the machine: processes that want to run."""


@dataclass
class Tally:
    """What the journal says so far."""

    reader: JournalReader
    asked: set[int] = field(default_factory=set)
    evaluated: Counter[tuple[int | str, str]] = field(default_factory=Counter)
    retries: int = 0
    failed: int = 0

    def look(self) -> None:
        """Take in what came since the last look."""
        for event in self.reader.poll():
            self._count(event)

    def _count(self, event: Event) -> None:
        if isinstance(event, Asked):
            self.asked.add(event.candidate)
        elif isinstance(event, Evaluated):
            self.evaluated[event.candidate, event.split] += 1
            self.failed += event.state == "failed"
        elif isinstance(event, Retried):
            self.retries += 1

    @property
    def done(self) -> int:
        """Candidates with an outcome on the search split."""
        return sum(isinstance(who, int) and split == "search" for who, split in self.evaluated)


class Saboteur:
    """Brings a fault at random times; the workers of the oldest node are spared.

    Args:
        nodes: of the cluster.
        orders: folder where workers look for what to do.
        draw: random numbers.
        every_s: seconds between faults, on average.
    """

    def __init__(self, nodes: Nodes, orders: Path, draw: random.Random, every_s: float) -> None:
        self._nodes = nodes
        self._orders = orders
        self._draw = draw
        self._every_s = every_s
        self._next_s = time.monotonic() + 5 * every_s
        self._silent: dict[int, float] = {}
        self.faults: Counter[str] = Counter()

    def act(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for pid in [pid for pid, end in self._silent.items() if end <= now]:
            del self._silent[pid]
            _send(pid, signal.SIGCONT)
        if now < self._next_s:
            return
        (fault,) = self._draw.choices(list(FAULTS), list(FAULTS.values()))
        if self._strike(fault, now):
            self.faults[fault] += 1
            self._next_s = time.monotonic() + self._draw.uniform(0.4, 1.6) * self._every_s

    def _strike(self, fault: str, now: float) -> bool:
        if fault == "node":
            self._nodes.kill(self._draw.choice(self._nodes.ids[1:]))
            self._nodes.add()
            return True
        victims = [pid for node in self._nodes.ids[1:] for pid in self._nodes.workers(node)]
        if not victims:
            return False
        victim = self._draw.choice(victims)
        if fault == "kill":
            return _send(victim, signal.SIGKILL)
        if fault == "silence":
            self._silent[victim] = now + 2 * TIMEOUT_S
            return _send(victim, signal.SIGSTOP)
        order = self._orders / str(victim)
        order.with_suffix(".tmp").write_text(fault)
        order.with_suffix(".tmp").rename(order)
        return True


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def memory_mib(pids: Sequence[int]) -> float:
    """Return the largest resident memory of some processes; 0 where none is there."""
    sizes = [0.0]
    for pid in pids:
        try:
            sizes.append(psutil.Process(pid).memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return max(sizes)


def soak(config: RunConfig, run: Path, nodes: Nodes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the search among faults; return the table and what became of the evaluations."""
    orders = run.parent / "orders"
    orders.mkdir()
    identities = Identities(open_problem(config).infos)
    factory = partial(HarriedScorer, identities, orders, arguments.scoring)
    saboteur = Saboteur(nodes, orders, random.Random(arguments.seed), arguments.every)  # noqa: S311  no secrets
    begin = last = time.monotonic()
    coordinator = Coordinator(config, run, factory, run.parent / "coordinator.log")
    journal = run / "journal.jsonl"
    tally = Tally(JournalReader(journal))
    table: list[Minute] = []
    done = 0
    try:
        while coordinator.is_alive and time.monotonic() - begin < 60 * arguments.minutes:
            time.sleep(0.2)
            saboteur.act()
            now = time.monotonic()
            if now - last >= 60 and journal.exists():
                tally.look()
                row = Minute(
                    minute=round((now - begin) / 60, 1),
                    evaluations=tally.done,
                    per_second=round((tally.done - done) / (now - last), 2),
                    coordinator_mib=round(memory_mib([coordinator.pid]), 1),
                    spared_worker_mib=round(memory_mib(nodes.workers(nodes.ids[0])), 1),
                    workers_mib=round(memory_mib([pid for node in nodes.ids for pid in nodes.workers(node)]), 1),
                    retries=tally.retries,
                    failed=tally.failed,
                    faults=saboteur.faults.total(),
                    journal_mib=round(journal.stat().st_size / 2**20, 2),
                    load=round(os.getloadavg()[0], 1),
                )
                table.append(row)
                say(row, is_first=len(table) == 1)
                done, last = tally.done, now
        if coordinator.is_alive:
            os.kill(coordinator.pid, signal.SIGINT)  # drains and pauses
        code, said = coordinator.ended()
    finally:
        coordinator.close()
    tally.look()
    return {
        "exit_code": code,
        "said": said,
        "seconds": round(time.monotonic() - begin, 1),
        "evaluations": tally.done,
        "lost": len(tally.asked - {who for who, split in tally.evaluated if split == "search"}),
        "twice": sum(count - 1 for count in tally.evaluated.values()),
        "retries": tally.retries,
        "failed": tally.failed,
        "faults": dict(saboteur.faults),
        "trends": trends(table),
        "minutes": [asdict(row) for row in table],
    }


def trends(table: Sequence[Minute]) -> dict[str, float]:
    """Return how memory and throughput went, the first minute left out: everything is still warming up in it."""
    rows = table[1:]
    if len(rows) < 4:
        return {}
    half = len(rows) // 2
    first, last = rows[0], rows[-1]
    grown = last.coordinator_mib - first.coordinator_mib
    return {
        "per_second_first_half": round(sum(row.per_second for row in rows[:half]) / half, 2),
        "per_second_second_half": round(sum(row.per_second for row in rows[half:]) / (len(rows) - half), 2),
        "coordinator_kib_an_evaluation": round(1024 * grown / (last.evaluations - first.evaluations), 2),
        "spared_worker_mib_grown": round(last.spared_worker_mib - first.spared_worker_mib, 1),
    }


def say(row: Minute, *, is_first: bool) -> None:
    """Print a line of the table."""
    if is_first:
        print("  ".join(asdict(row)), file=sys.stderr, flush=True)
    line = "  ".join(f"{value:>{len(name)}}" for name, value in asdict(row).items())
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Soak, verify, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="pause after so many minutes, whatever is done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scoring", type=float, default=0.05, help="seconds that scoring takes")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults, on average")
    parser.add_argument("--run", type=Path, help="where the run folder is made; left out: a temporary one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    prepare_environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = (arguments.run or folder / "soak" / "run").absolute()
        run.parent.mkdir(parents=True, exist_ok=True)
        nodes = Nodes()
        try:
            nodes.add(arguments.workers)
            executor = {
                "kind": "ray",
                "address": nodes.address,
                "workers": arguments.workers,
                "gpus_per_worker": 1,
                "timeout_s": TIMEOUT_S,
                "attempts": 20,
                "quarantine_after": 10,  # faults hit recipes at random: none of them is poison
            }
            search = {"searcher": "random", "seed": arguments.seed}
            engine = {"kind": "transformers"}
            config = small_search(
                write_problem(folder),
                evaluations=arguments.evaluations,
                executor=executor,
                search=search,
                engine=engine,
            )
            result = soak(config, run, nodes, arguments)
        finally:
            nodes.shutdown()
        began = time.monotonic()
        report = verify(run)
        result |= {"verified": asdict(report), "verify_seconds": round(time.monotonic() - began, 1)}
    told = {key: value for key, value in result.items() if key != "minutes"}
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{key:16}{told[key]}" for key in told))
    if result["exit_code"] or result["lost"] or result["twice"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
