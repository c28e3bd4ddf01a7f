"""Statistic files: written whole, mapped when read, and held against the model that they are used for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints import (
    Checkpoint,
    StatisticFile,
    StatisticNote,
    open_checkpoint,
    open_statistics,
    write_statistic,
)
from evomerge.checkpoints.statistics import importance_scales
from evomerge.errors import SourceError, StorageError
from evomerge.testing.checkpoints import write_tiny_llama

NAME = "model.norm.weight"


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_tiny_llama(tmp_path / "model"))


def write(
    path: Path, model: Checkpoint, tensors: Mapping[str, Tensor] | None = None, kind: Any = "fisher", **facts: Any
) -> Path:
    note = StatisticNote(**{"kind": kind, "source": model.content_hash, "calibration": "c", **facts})
    write_statistic(path, note, {NAME: torch.ones(16)} if tensors is None else tensors)
    return path


def test_a_file_reads_back_as_it_was_written(tmp_path: Path, model: Checkpoint) -> None:
    settings = {"labels": "model", "seed": 3}
    path = write(tmp_path / "s" / "fisher.safetensors", model, settings=settings, done=4, median=2.0, norm=3.0)
    file = StatisticFile(path)
    assert file.note == StatisticNote(
        kind="fisher",
        source=model.content_hash,
        calibration="c",
        settings=settings,
        done=4,
        median=2.0,
        norm=3.0,
    )
    assert file.names() == (NAME,)
    assert torch.equal(file.tensor(NAME), torch.ones(16))  # type: ignore[arg-type]
    assert file.tensor("lm_head.weight") is None
    assert [path.name for path in path.parent.iterdir()] == ["fisher.safetensors"]


def test_the_content_hash_is_of_header_and_tensors_and_of_no_path(tmp_path: Path, model: Checkpoint) -> None:
    first = StatisticFile(write(tmp_path / "a" / "fisher.safetensors", model)).content_hash
    assert StatisticFile(write(tmp_path / "b" / "fisher.safetensors", model)).content_hash == first
    others = [
        write(tmp_path / "c" / "fisher.safetensors", model, {NAME: torch.zeros(16)}),
        write(tmp_path / "d" / "fisher.safetensors", model, calibration="other"),
        write(tmp_path / "e" / "fisher.safetensors", model, norm=2.0),
    ]
    assert len({first, *(StatisticFile(path).content_hash for path in others)}) == 4


def test_parameters_of_one_input_share_a_matrix(tmp_path: Path, model: Checkpoint) -> None:
    query, key = (f"model.layers.0.self_attn.{name}_proj.weight" for name in ("q", "k"))
    write(tmp_path / "gram.safetensors", model, {query: torch.eye(16)}, kind="gram", shared={key: query})
    (file,) = open_statistics(tmp_path, model).values()
    assert torch.equal(file.tensor(key), torch.eye(16))  # type: ignore[arg-type]


def test_a_folder_gives_its_files_by_kind(tmp_path: Path, model: Checkpoint) -> None:
    for kind in ("fisher", "adam"):
        write(tmp_path / f"{kind}.safetensors", model, kind=kind)
    assert set(open_statistics(tmp_path, model)) == {"fisher", "adam"}


class TestRefusals:
    """Each in one sentence that names the file."""

    def refused(self, folder: Path, model: Checkpoint, text: str) -> None:
        with pytest.raises(SourceError, match=text) as caught:
            open_statistics(folder, model)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)

    def test_a_statistic_of_another_model(self, tmp_path: Path, model: Checkpoint) -> None:
        write(tmp_path / "fisher.safetensors", model, source="f" * 64)
        self.refused(
            tmp_path, model, r"computed for another model \(its content hashes to ffffffffffff, this source's to"
        )

    def test_a_folder_without_any(self, tmp_path: Path, model: Checkpoint) -> None:
        self.refused(tmp_path, model, "no statistics here; expected a folder with fisher.safetensors")
        self.refused(tmp_path / "none", model, "no statistics here")

    def test_a_checkpoint_in_its_place(self, tmp_path: Path, model: Checkpoint) -> None:
        save_file({NAME: torch.ones(16)}, tmp_path / "fisher.safetensors")
        self.refused(tmp_path, model, "this is no statistic file; make one with `evomerge stats`")

    def test_a_header_of_another_version(self, tmp_path: Path, model: Checkpoint) -> None:
        save_file({NAME: torch.ones(16)}, tmp_path / "fisher.safetensors", metadata={"statistic": '{"version": 9}'})
        self.refused(tmp_path, model, "a statistic file of version 9, expected 1")

    def test_a_file_that_is_cut_short(self, tmp_path: Path, model: Checkpoint) -> None:
        path = write(tmp_path / "fisher.safetensors", model)
        path.write_bytes(path.read_bytes()[:-8])
        self.refused(tmp_path, model, "not a whole safetensors file")

    def test_a_name_of_another_kind(self, tmp_path: Path, model: Checkpoint) -> None:
        write(tmp_path / "adam.safetensors", model, kind="fisher")
        self.refused(tmp_path, model, "a statistic of kind 'fisher'; rename it")

    @pytest.mark.parametrize(
        ("kind", "tensors"),
        [
            ("fisher", {NAME: torch.ones(15)}),
            ("fisher", {"other.weight": torch.ones(16)}),
            ("gram", {NAME: torch.eye(16)}),
            ("gram", {"model.layers.0.mlp.up_proj.weight": torch.eye(15)}),
        ],
    )
    def test_tensors_that_do_not_fit(
        self, tmp_path: Path, model: Checkpoint, kind: str, tensors: dict[str, Tensor]
    ) -> None:
        write(tmp_path / f"{kind}.safetensors", model, tensors, kind=kind)
        self.refused(tmp_path, model, f"what it holds of '{next(iter(tensors))}' does not fit the model")

    def test_values_that_no_statistic_has(self, tmp_path: Path, model: Checkpoint) -> None:
        for value, kind in ((-1.0, "fisher"), (float("nan"), "adam"), (float("inf"), "fisher")):
            path = write(tmp_path / f"{kind}.safetensors", model, {NAME: torch.full((16,), value)}, kind=kind)
            with pytest.raises(SourceError, match="values that are negative, NaN or infinite"):
                StatisticFile(path).check_values(NAME)
        gram = {"model.layers.0.mlp.up_proj.weight": -torch.eye(16)}
        StatisticFile(write(tmp_path / "gram.safetensors", model, gram, kind="gram")).check_values(next(iter(gram)))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, model: Checkpoint) -> None:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(StorageError):
            write(tmp_path / "closed" / "fisher.safetensors", model)


@given(st.lists(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=9), min_size=1, max_size=4))
def test_the_scales_of_an_importance_are_those_of_all_its_entries(values: list[list[float]]) -> None:
    whole = np.concatenate([np.asarray(part, dtype=np.float64) for part in values])
    found = importance_scales([torch.tensor(part, dtype=torch.float32) for part in values])
    if not whole.any():
        assert found == {"mean": 1.0, "median": 1.0, "norm": 1.0}
        return
    above = np.sort(whole[whole > 0])[::-1]
    assert found["mean"] == pytest.approx(whole.mean())
    assert found["norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-5)
    assert found["median"] == above[max(1, len(above) // 2) - 1]
