"""Kill a real run with SIGKILL at random instants, resume it each time, and compare it with the undisturbed one.

    python benchmarks/resume_equivalence.py [--kills 50] [--evaluations 150] [--within 10] [--seed 0]
        [--engine transformers] [--json]

The demo's search on the real models with a deterministic engine in the coordinator's own process. With `--engine vllm`
the undisturbed run still has the transformers engine, so that the two engines are compared as well, and its start takes
longer: `--kills 5 --evaluations 24 --within 60`.
Each session is a process of its own, killed at an instant drawn uniformly from its first seconds (starting takes
about half of them). Printed: kills, how many found a journal, and whether candidates, scores and order are equal.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from evomerge.demo.run import CONFIG
from evomerge.run.events import Asked, Evaluated
from evomerge.run.journal import read_journal
from evomerge.run.replay import verify


def story(run: Path) -> list[tuple[Any, ...]]:
    """Return what a run found, in order, without times, workers and sessions."""
    lines: list[tuple[Any, ...]] = []
    for event in read_journal(run / "journal.jsonl"):
        if isinstance(event, Asked):
            lines.append(("asked", event.candidate, event.recipe_id, event.genome, event.parents))
        elif isinstance(event, Evaluated):
            what = (event.candidate, event.recipe_id, event.split, event.state, event.scores)
            lines.append(("evaluated", *what, tuple(sorted(event.objectives.items()))))
    return lines


def session(run: Path, config: Path, evaluations: int, engine: str) -> subprocess.Popen[bytes]:
    """Start or resume the run in a process of its own."""
    command = [sys.executable, "-m", "evomerge", "resume", str(run), "--plain"]
    if not (run / "config.yaml").exists():
        settings = [f"budget.evaluations={evaluations}", "executor.kind=inline", "engine.threads=1"]
        settings.append(f"engine.kind={engine}")
        chosen = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "evomerge", "run", str(config), "--out", str(run), "--plain", *chosen]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--within", type=float, default=10.0, help="seconds within which a session is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)  # noqa: S311  instants, not secrets
    with tempfile.TemporaryDirectory() as folder:
        calm, harried = Path(folder) / "undisturbed", Path(folder) / "killed"
        if session(calm, CONFIG, arguments.evaluations, "transformers").wait() != 0:
            sys.exit("the undisturbed run failed")
        kills = hits = 0
        while kills < arguments.kills:
            process = session(harried, CONFIG, arguments.evaluations, arguments.engine)
            try:
                process.wait(timeout=draw.uniform(0.0, arguments.within))
                break
            except subprocess.TimeoutExpired:
                before = len(story(harried)) if (harried / "journal.jsonl").exists() else 0
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                hits += before > 0
        if session(harried, CONFIG, arguments.evaluations, arguments.engine).wait() != 0:
            sys.exit("the killed run could not be ended")
        evaluated = [line for line in story(harried) if line[0] == "evaluated"]
        result = {
            "kills": kills,
            "kills_with_a_journal": hits,
            "lines": len(story(calm)),
            "equal": story(calm) == story(harried),
            "scored_twice": len(evaluated) - len({(line[1], line[3]) for line in evaluated}),
            "verified_candidates": verify(harried).candidates,
        }
    line = "  ".join(f"{key} {value}" for key, value in result.items())
    print(json.dumps(result, indent=2) if arguments.json else line)


if __name__ == "__main__":
    main()
