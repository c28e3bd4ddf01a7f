"""What is kept between candidates, and between processes in files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from evomerge.merging import keeping, kept_files, materialise, open_sources, plan
from evomerge.merging.kept_files import KeptFile
from evomerge.recipe import Recipe

Make = Callable[..., Recipe]
TENSORS = (torch.arange(6.0).view(2, 3), torch.zeros(3, 0), torch.tensor([1, 2]))


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what forgets which files are known to be sound, as a process that starts does."""

    def forget() -> None:
        monkeypatch.setattr(kept_files, "_sound", set())

    forget()
    return forget


class TestFiles:
    def test_tensors_come_back_as_they_were(self, another_process: Callable[[], None]) -> None:
        file = KeptFile("kind", ["what", 1])
        assert file.read() is None
        assert file.write(TENSORS)
        for _ in range(2):
            found = KeptFile("kind", ["what", 1]).read()
            assert found is not None
            assert all(
                torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, TENSORS, strict=True)
            )
            assert all(tensor.data_ptr() % 64 == 0 for tensor in found)
            another_process()
        assert KeptFile("kind", ["what", 2]).read() is None
        assert KeptFile("other", ["what", 1]).read() is None

    @pytest.mark.parametrize("damage", ["cut", "changed", "no header", "no checksum"])
    def test_a_damaged_file_counts_as_none(
        self, own_cache: Path, another_process: Callable[[], None], damage: str
    ) -> None:
        file = KeptFile("kind", ["what"])
        file.write(TENSORS)
        (path,) = (own_cache / "kind").iterdir()
        data = path.read_bytes()
        broken = {
            "cut": data[:-4],
            "changed": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
            "no header": b"broken",
            "no checksum": data.replace(b"crc32", b"crc99"),
        }
        path.write_bytes(broken[damage])
        another_process()
        assert file.read() is None
        assert file.write(TENSORS)
        assert file.read() is not None

    def test_a_disk_that_refuses_costs_time_only(self, own_cache: Path) -> None:
        own_cache.write_text("")
        file = KeptFile("kind", ["what"])
        assert not file.write(TENSORS)
        assert file.read() is None

    def test_the_longest_unused_make_room_but_none_in_use(
        self, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Room for three files of about 4,100 bytes each: a quarter of what is free without them."""
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 4 * 13_000 - _taken(folder)))
        files = [KeptFile("kind", [number]) for number in range(5)]
        tensors = (torch.zeros(1000),)
        for file in files[:3]:
            assert file.write(tensors)
        assert not files[3].write(tensors)

        for age, file in zip((9000, 7000, 5000), files, strict=False):
            os.utime(file._path, (time.time() - age,) * 2)
        assert files[0].read() is not None  # used again: now the second is the oldest
        assert files[3].write(tensors)
        assert [file.read() is not None for file in files] == [True, False, True, True, False]
        assert not files[4].write(tensors)


def _taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class TestKernels:
    METHODS = ("tsv_m", "iso_c", "star", "knots", "wudi", "swudi", "opcm")

    def merge(self, recipe: Recipe, folder: Path) -> dict[str, Tensor]:
        return dict(materialise(plan(recipe, open_sources(recipe, folder))))

    @pytest.mark.parametrize("method", METHODS)
    def test_another_process_finds_decompositions(
        self, models: Path, make_recipe: Make, own_cache: Path, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """Not one is made again, and every bit is that of a merge that keeps nothing."""
        recipe = make_recipe({"method": method})
        expected = self.merge(recipe, models)
        assert not (own_cache / "decompositions").exists(), "these are too small for files"

        monkeypatch.setattr(keeping, "_LARGE", 0)
        first = self.merge(recipe, models)
        files = sorted((own_cache / "decompositions").iterdir())
        assert files
        monkeypatch.setattr(KeptFile, "write", lambda *_: pytest.fail("something was made again"))
        second = self.merge(recipe, models)
        for name, tensor in expected.items():
            assert torch.equal(first[name], tensor), name
            assert torch.equal(second[name], tensor), name

    def test_a_damaged_decomposition_is_made_again(
        self,
        models: Path,
        make_recipe: Make,
        own_cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        another_process: Callable[[], None],
    ) -> None:
        monkeypatch.setattr(keeping, "_LARGE", 0)
        recipe = make_recipe({"method": "tsv_m"})
        expected = self.merge(recipe, models)
        for path in (own_cache / "decompositions").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        another_process()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in self.merge(recipe, models).items())

    def test_a_recipe_within_a_recipe_leaves_no_files(
        self, models: Path, make_recipe: Make, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A search would leave those of every candidate."""
        monkeypatch.setattr(keeping, "_LARGE", 0)
        inner = make_recipe().to_mapping()
        sources = {"base": {"model": "base"}, "math": {"model": "math"}, "ja": {"model": inner}}
        self.merge(make_recipe({"method": "tsv_m"}, sources=sources), models)
        assert not (own_cache / "decompositions").exists()

    def test_memory_is_bounded(self, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was used least recently goes; what is larger than all of it is not kept."""
        monkeypatch.setattr(keeping, "_MOST_BYTES", 3 * (4000 + keeping._ENTRY_BYTES))
        kept = open_sources(make_recipe(), models).statistics.keeper.in_memory(())
        made: list[str] = []

        def get(what: str, size: int = 1000) -> None:
            kept(what, lambda: made.append(what) or (torch.zeros(size),))

        for what in ("a", "b", "c", "a", "d", "a", "c", "b"):
            get(what)
        assert made == ["a", "b", "c", "d", "b"]
        get("large", 10_000)
        get("large", 10_000)
        assert made[5:] == ["large", "large"]
