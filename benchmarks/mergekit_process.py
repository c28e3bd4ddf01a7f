"""Has mergekit merge, by a Python of its own, for the benchmarks that compare with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_mergekit(python: str, folder: Path, threads: int = 1) -> dict[str, float]:
    """Merge all configurations of a folder as `mergekit_run.py` says; return the seconds of each merge, by name."""
    runner = Path(__file__).with_name("mergekit_run.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [python, str(runner), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"mergekit failed:\n{done.stderr[-3000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds
