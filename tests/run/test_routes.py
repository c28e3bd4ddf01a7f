"""Searches over routes, and over routes and coefficients, from a search file to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.run.export import export_checkpoint, export_mergekit
from evomerge.run.replay import verify
from evomerge.run.session import start
from evomerge.run.view import load_run
from tests.run.small import small_search, write_problem

SPACES: dict[str, dict[str, Any]] = {
    "data flow": {"kind": "data_flow", "encoding": "hop_scales", "repeats": 2, "initial_keep": 0.3},
    "joint": {"kind": "joint", "method": "task_arithmetic", "repeats": 1, "initial_keep": 0.3},
    "alternating": {
        "kind": "joint",
        "method": "task_arithmetic",
        "schedule": "alternating",
        "stage_evaluations": 4,
        "repeats": 1,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.mark.parametrize("name", SPACES)
def test_a_search_over_routes_ends_in_a_standard_checkpoint(folder: Path, tmp_path: Path, name: str) -> None:
    path, model = tmp_path / "run", tmp_path / "model"
    config = small_search(folder, evaluations=8, space=SPACES[name])
    start(config, path)
    run = load_run(path)
    assert run.status()["evaluations"]["done"] == 8
    assert verify(path).candidates == len(run.state.asked)
    deepest = max(run.state.asked, key=lambda number: len(run.recipe(number).layers or ()))
    export_checkpoint(path, model, str(deepest))
    merged: Any = AutoModelForCausalLM.from_pretrained(model)
    assert merged.config.num_hidden_layers == len(run.recipe(deepest).layers or (0, 1))
    with torch.no_grad():
        assert torch.isfinite(merged(input_ids=torch.tensor([[3, 4, 5]])).logits).all()
    card = (model / "README.md").read_text()
    assert "| letters |" in card
    assert "| merged |" not in card


def test_a_route_is_written_for_mergekit(folder: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "run", tmp_path / "route.yaml"
    start(small_search(folder, evaluations=4, space=SPACES["data flow"]), path)
    export_mergekit(path, out, "0")
    assert "merge_method: passthrough" in out.read_text()
