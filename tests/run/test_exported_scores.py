"""What is exported is what was scored: the `lm_eval` command line finds the run's own scores, document by document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.catalog import catalog_root
from evomerge.demo.run import CONFIG
from evomerge.fitness.splits import document_hash
from evomerge.run.export import export_checkpoint
from evomerge.run.load import load_config
from evomerge.run.session import start
from evomerge.run.view import load_run

TASKS = ("sums", "japanese", "letters")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A short search over the embedded models, and the export of its best candidate."""
    folder = tmp_path_factory.mktemp("exported")
    config = load_config(
        CONFIG, ["budget.evaluations=4", "executor.kind=inline", "references.coefficients=0", "engine.threads=1"]
    )
    start(config, folder / "run")
    export_checkpoint(folder / "run", folder / "model")
    return folder / "run", folder / "model"


@pytest.mark.slow
def test_the_lm_eval_command_line_gives_the_journaled_scores(exported: tuple[Path, Path], tmp_path: Path) -> None:
    path, model = exported
    run = load_run(path)
    recorded = run.scores(run.resolve("best"), "test")
    assert recorded is not None
    chosen = {task: _positions(task, set(recorded.documents[task])) for task in TASKS}
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"),
        *("--tasks", ",".join(TASKS), "--include_path", ".", "--batch_size", "64", "--device", "cpu"),
        *("--samples", json.dumps(chosen), "--log_samples", "--output_path", str(tmp_path)),
    ]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=catalog_root() / "fitness", env=quiet, check=True, capture_output=True, timeout=240)
    for task in TASKS:
        (log,) = tmp_path.rglob(f"samples_{task}_*.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        theirs = {document_hash(row["doc"]): row["exact_match"] for row in rows}
        ours = dict(zip(recorded.documents[task], recorded.samples[f"{task}.exact_match"], strict=True))
        assert theirs == ours
        assert len(ours) > 100
        assert 0.0 < np.mean(list(ours.values())) < 1.0


def _positions(task: str, wanted: set[str]) -> list[int]:
    """Return where the wanted documents stand in a task's data file."""
    lines = (catalog_root() / "fitness" / "data" / f"{task}.jsonl").read_text().splitlines()
    return [index for index, line in enumerate(lines) if document_hash(json.loads(line)) in wanted]
