"""A search over adapters on one model, exported as an adapter."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from evomerge.checkpoints import open_checkpoint
from evomerge.cli.main import run_command
from evomerge.errors import NotBuiltError
from evomerge.run.export import export_adapter
from evomerge.run.folder import RunFolder
from evomerge.run.session import start
from evomerge.testing.adapters import write_lora
from tests.run.small import small_search, write_problem

SOURCES = {
    "base": {"model": "base"},
    "letters": {"model": "base", "adapter": "lora-letters"},
    "digits": {"model": "base", "adapter": "lora-digits"},
}


def search(folder: Path, method: str) -> Path:
    """Run a search of four candidates and return the run folder."""
    problem = write_problem(folder)
    for seed, alias in enumerate(("letters", "digits"), start=1):
        write_lora(problem / f"lora-{alias}", problem / "base", seed)
    space = {"method": method, "groups": {"layers": 2}}
    start(small_search(problem, evaluations=4, sources=SOURCES, space=space, engine={"threads": 1}), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("adapters"), "task_arithmetic")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 23)[None]).logits
    return result


def test_peft_loads_what_the_command_wrote_and_it_is_the_candidate(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("checkpoint", "adapter"):
        assert run_command(["export", str(run), str(tmp_path / kind), "--format", kind, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["format"] == kind
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = (tmp_path / "adapter" / settings["base_model_name_or_path"]).resolve()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        ours = logits(PeftModel.from_pretrained(model, str(tmp_path / "adapter")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    tolerance = 1e-5 if open_checkpoint(tmp_path / "checkpoint").config["dtype"] == "float32" else 0.1
    assert (ours - logits(merged)).abs().max() < tolerance


def test_the_card_names_the_adapters(run: Path, tmp_path: Path) -> None:
    export_adapter(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| letters | base with the adapter lora-letters |" in card
    assert "adapter:" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_candidate_that_is_none_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    path = search(tmp_path, "ties")
    before = RunFolder(path).journal.read_bytes()
    with pytest.raises(NotBuiltError, match=r"blend\.method: 'ties' is not linear .* write it as a checkpoint"):
        export_adapter(path, tmp_path / "out")
    assert RunFolder(path).journal.read_bytes() == before
    assert not (tmp_path / "out").exists()
