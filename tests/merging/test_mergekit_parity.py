"""Merges of mergekit's own files against what mergekit 0.1.5 made of them (`benchmarks/mergekit_parity.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evomerge.merging import MergePlan, materialise, open_sources, plan, read_recipe_file, to_mergekit
from evomerge.operators.kernels import pruned, sparsified
from tests.merging.mergekit_cases import CASES, RANDOM, chances, write_models

HIDDEN = 4
"""Size of the models of the stored results."""
MERGEKIT = "EVOMERGE_MERGEKIT_PYTHON"
"""Names the Python of an environment with mergekit 0.1.5."""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), hidden=HIDDEN)


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("mergekit_outputs.safetensors"))


def planned(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, name: str = "config.yml") -> MergePlan:
    monkeypatch.chdir(folder)
    (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    recipe = read_recipe_file(folder / name).recipe
    return plan(recipe, open_sources(recipe, folder))


def flat(merge: MergePlan) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(materialise(merge))])


def inject_masks(merge: MergePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DARE and DELLA draw the numbers that mergekit's results were drawn with."""
    aliases = {info.content_hash: alias for alias, info in merge.sources.infos.items()}

    def key(seed: int, name: str, source_id: str) -> tuple[str, str]:
        assert seed == merge.recipe.seed
        return name, aliases[source_id]

    def uniform(numel: int, key: tuple[str, str], *, offset: int = 0, device: object = None) -> Tensor:
        return chances(*key, offset, offset + numel)

    class Drop:
        """As `thinning.Drop`."""

        def __init__(self, keys: Mapping[int, tuple[str, str]], densities: Mapping[int, float]) -> None:
            self._keys, self._densities = keys, densities

        def __call__(self, index: int, delta: Tensor, start: int) -> Tensor:
            return delta.mul_(uniform(delta.numel(), self._keys[index], offset=start) < self._densities[index])

    monkeypatch.setattr(pruned, "mask_key", key)
    monkeypatch.setattr(pruned, "uniform", uniform)
    monkeypatch.setattr(sparsified, "mask_key", key)
    monkeypatch.setattr(sparsified, "Drop", Drop)


@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_mergekits(
    case: str, folder: Path, stored: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = planned(folder, CASES[case], monkeypatch)
    inject_masks(merge, monkeypatch)
    ours = flat(merge)
    assert ours.shape == stored[case].shape
    assert float((ours - stored[case]).abs().max()) <= 1e-6


def test_the_stored_results_tell_the_configurations_apart(stored: dict[str, Tensor]) -> None:
    assert stored.keys() == CASES.keys()
    results = list(stored.values())
    for index, one in enumerate(results):
        for other in results[index + 1 :]:
            assert one.shape != other.shape or float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith(RANDOM)])
def test_an_export_read_again_is_the_same_merge(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = planned(folder, CASES[case], monkeypatch)
    again = planned(folder, to_mergekit(merge).text, monkeypatch, "again.yml")
    torch.testing.assert_close(flat(again), flat(merge), rtol=0, atol=5e-7)


@pytest.mark.skipif(MERGEKIT not in os.environ, reason=f"{MERGEKIT} names no Python with mergekit")
def test_parity_with_mergekit_itself() -> None:
    script = ROOT / "benchmarks" / "mergekit_parity.py"
    command = [sys.executable, str(script), "--mergekit-python", os.environ[MERGEKIT], "--hidden", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
