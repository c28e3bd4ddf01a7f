"""Files of mergekit and mergekit-evolve on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from evomerge.cli.main import run_command
from evomerge.documents import read_yaml
from evomerge.merging import merge
from evomerge.run.config import RunConfig

_TIES = """
merge_method: ties
base_model: zoo:base
models:
  - {model: zoo:math, parameters: {weight: 0.7, density: 0.5}}
  - {model: zoo:japanese, parameters: {weight: -0.4, density: [0.3, 0.9]}}
dtype: float32
out_dtype: float16
"""
_GENOME = """
genome: {models: [zoo:math, zoo:japanese], base_model: zoo:base, merge_method: task_arithmetic, layer_granularity: 1}
tasks: [{name: sums, metric: exact_match}]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mergekit.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_merge_takes_a_mergekit_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, _TIES)
    assert run_command(["merge", str(path), str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert "note: ties: with negative weights" in printed.err
    assert len(facts["notes"]) == 1
    assert merge(path, tmp_path / "again").recipe_id == facts["recipe_id"]
    assert merge(tmp_path / "out" / "recipe.yaml", tmp_path / "third").recipe_id == facts["recipe_id"]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16"}


def test_a_key_that_is_not_understood_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, _TIES.replace("density: 0.5", "densty: 0.5"))
    assert run_command(["merge", str(path), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith("method 'ties' has no parameter 'densty'; did you mean 'density'?")
    assert told.startswith(f"error: {path}:5: models[0].parameters.densty")
    assert not (tmp_path / "out").exists()


def test_import_writes_a_recipe(tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    assert run_command(["import", str(write(tmp_path, _TIES)), str(out)]) == 0
    assert read_yaml(out).data["blend"]["zero_sign"] == "positive"
    assert run_command(["import", str(tmp_path / "mergekit.yml"), str(out)]) == 2


def test_import_writes_a_search_and_its_suite(tmp_path: Path) -> None:
    out = tmp_path / "search.yaml"
    assert run_command(["import", str(write(tmp_path, _GENOME)), str(out)]) == 0
    config = read_yaml(out).parse(RunConfig)
    assert config.space.groups.layers == "every"
    assert config.fitness.objectives == ("sums.exact_match",)
    suite = yaml.safe_load((tmp_path / config.fitness.suite).read_text(encoding="utf-8"))
    assert suite["tasks"] == [{"task": "sums"}]


def test_import_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["import", str(write(tmp_path, "recipe: 1")), str(tmp_path / "out.yaml")]) == 2
    assert "this is no file of mergekit" in capsys.readouterr().err


def test_relative_models_start_in_the_working_folder_or_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.testing.checkpoints import write_tiny_llama

    (tmp_path / "work").mkdir()
    (tmp_path / "files").mkdir()
    write_tiny_llama(tmp_path / "work" / "one", 1)
    write_tiny_llama(tmp_path / "files" / "two", 2)
    monkeypatch.chdir(tmp_path / "work")
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one}, {model: two}]\n"
    report = merge(write(tmp_path / "files", text), tmp_path / "out")
    assert report.num_tensors > 0
