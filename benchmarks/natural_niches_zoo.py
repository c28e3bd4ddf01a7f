"""Natural niches on the embedded language models, beside other searchers at equal evaluations.

    python benchmarks/natural_niches_zoo.py [--seeds 0 1 2 3 4] [--evaluations 96] [--workers 2] [--json FILE]

Every search varies the same thing, mixtures of the four shipped models piece by piece of their weights (`space.kind:
piecewise`), and is measured as in `benchmarks/data_flow.py`: the eight best on the search split go to the validation
split, the best one there to the test split. CMA-ES and random search vary the weights of 16 equal chunks. CMA-ES over
a task vector's coefficients by layer and module is there for orientation: it may leave the sources' mixtures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_flow import NARROW, PARAMETER, Arm, study, table

PIECES = {"kind": "piecewise", "chunks": 16}
ARMS = {
    "natural niches, archive 20": Arm(PIECES, searcher="natural_niches", options={"archive": 20}),
    "natural niches, archive 10": Arm(PIECES, searcher="natural_niches", options={"archive": 10}),
    "NSGA-II on 16 chunks": Arm(PIECES, searcher="nsga_ii", options={"population": 20}),
    "CMA-ES on 16 chunks": Arm(PIECES),
    "random search on 16 chunks": Arm(PIECES, searcher="random", options={}),
    "CMA-ES, task arithmetic by layer": Arm(PARAMETER, NARROW),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="search seeds")
    parser.add_argument("--evaluations", type=int, default=96, help="scored candidates of each search")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which searches")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    begun, rows = time.perf_counter(), []
    for row in study({name: ARMS[name] for name in options.arms}, options.seeds, options.evaluations, options.workers):
        rows.append(row)
        print(f"{time.perf_counter() - begun:5.0f} s  {row}", flush=True)
    order = list(ARMS)
    rows.sort(key=lambda row: -1 if row.seed is None else order.index(row.arm) * 1000 + row.seed)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
