"""A file is what was written to it, whichever way its parts went."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.direct import DirectFile

MEBI = 1 << 20
LENGTHS = st.sampled_from([1, 4095, 4096, MEBI - 1, MEBI, MEBI + 4097, 9 * MEBI + 3]) | st.integers(1, 3 * MEBI)


def wrote(path: Path, lengths: Sequence[int], order: Sequence[int]) -> bool:
    """Write parts in an order; tell whether the file is these parts one after the other."""
    parts = [np.random.default_rng(place).bytes(length) for place, length in enumerate(lengths)]
    offsets = [sum(lengths[:place]) for place in range(len(lengths))]
    file = DirectFile(path)
    for place in order:
        file.write(offsets[place], memoryview(parts[place]))
    file.close()
    return path.read_bytes() == b"".join(parts)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_parts_of_any_length_may_come_in_any_order(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(LENGTHS, min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(lengths))))
    with TemporaryDirectory() as folder:
        assert wrote(Path(folder) / "file", lengths, order)


def test_a_system_without_direct_writes_is_written_to_through_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert wrote(tmp_path / "file", [5, 2 * MEBI], [1, 0])


def test_a_file_system_that_refuses_at_the_first_write_is_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, refused = os.pwrite, []

    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        if not refused and len(data) > MEBI:
            refused.append(offset)
            raise OSError(errno.EINVAL, "no")
        return plain(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert wrote(tmp_path / "file", [5, 3 * MEBI, 2 * MEBI], [0, 2, 1])


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(handle: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    file = DirectFile(tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="full"):
            file.write(0, memoryview(bytes(2 * MEBI)))
    file.close(sync=False)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"
