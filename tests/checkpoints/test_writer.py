from __future__ import annotations

import errno
import json
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from evomerge.checkpoints import CheckpointWriter, TensorInfo, open_checkpoint, output_config
from evomerge.checkpoints import writer as writer_module
from evomerge.errors import ConfigError, StorageError
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def infos(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write(out: Path, tensors: dict[str, Tensor], **options: Any) -> None:
    with CheckpointWriter(out, infos(tensors), **options) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def read(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in out.glob("*.safetensors"):
        found |= load_file(path)
    return found


def nothing_left(parent: Path) -> bool:
    return list(parent.iterdir()) == []


name_strategy = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
tensor_strategy = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32)
).map(lambda drawn: torch.randint(0, 100, drawn[1], generator=torch.Generator().manual_seed(drawn[2])).to(drawn[0]))


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(name_strategy, tensor_strategy, min_size=1, max_size=8),
    limit=st.integers(1, 400),
    order=st.randoms(use_true_random=False),
)
def test_what_is_written_is_read_by_safetensors(tensors: dict[str, Tensor], limit: int, order: Any) -> None:
    """Any names, shapes and dtypes, any shard size, in any order of writing."""
    parent = Path(tempfile.mkdtemp())
    try:
        out = parent / "model"
        with CheckpointWriter(out, infos(tensors), max_shard_bytes=limit) as writer:
            for name in order.sample(sorted(tensors), len(tensors)):
                writer.write(name, tensors[name])
        found = read(out)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        if len(list(out.glob("*.safetensors"))) > 1:
            index = json.loads((out / "model.safetensors.index.json").read_text())
            assert index["weight_map"].keys() == tensors.keys()
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
            for path in out.glob("*.safetensors"):
                sizes = [tensor.nbytes for tensor in load_file(path).values()]
                assert sum(sizes) <= limit or len([size for size in sizes if size]) == 1
    finally:
        shutil.rmtree(parent)


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    """Transposed and strided tensors come out in row-major order."""
    matrix = torch.arange(12.0).view(3, 4)
    write(tmp_path / "m", {"t": matrix.T, "s": matrix[:, ::2]})

    assert torch.equal(read(tmp_path / "m")["t"], matrix.T)
    assert torch.equal(read(tmp_path / "m")["s"], matrix[:, ::2])


def test_the_written_folder_opens_as_a_checkpoint(tmp_path: Path) -> None:
    tensors = tiny_llama_tensors(tiny_llama_config())
    with CheckpointWriter(tmp_path / "m", infos(tensors), max_shard_bytes=3000) as writer:
        writer.add(lambda folder: (folder / "config.json").write_text(json.dumps(tiny_llama_config())))
        for name, tensor in tensors.items():
            writer.write(name, tensor)

    assert open_checkpoint(tmp_path / "m").names() == tuple(sorted(tensors))


def test_an_empty_folder_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    write(tmp_path / "m", {"a": torch.zeros(2)})

    assert read(tmp_path / "m").keys() == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_others_may_read_the_folder(tmp_path: Path) -> None:
    """It has the permissions of any new folder, not those of a private temporary one."""
    (tmp_path / "plain").mkdir()
    write(tmp_path / "m", {"a": torch.zeros(2)})

    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "m")}
    assert len(modes) == 1


class TestRefusals:
    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").write_text("")
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="not empty; name a new one"):
            CheckpointWriter(tmp_path / "full", {})
        with pytest.raises(ConfigError, match="not a folder; name a new one"):
            CheckpointWriter(tmp_path / "file", {})

    def test_a_shard_holds_something(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="at least 1 byte, got 0"):
            CheckpointWriter(tmp_path / "m", {}, max_shard_bytes=0)

    @pytest.mark.parametrize(
        ("tensors", "error", "text"),
        [
            ([("a", torch.zeros(3))], ValueError, "planned as"),
            ([("a", torch.zeros(2, dtype=torch.float16))], ValueError, "planned as"),
            ([("b", torch.zeros(2))], KeyError, "b"),
            ([("a", torch.zeros(2)), ("a", torch.zeros(2))], KeyError, "a"),
            ([], ValueError, "1 planned tensors were not written, such as 'a'"),
        ],
    )
    def test_tensors_are_as_planned(
        self, tmp_path: Path, tensors: list[tuple[str, Tensor]], error: type[Exception], text: str
    ) -> None:
        def attempt() -> None:
            with CheckpointWriter(tmp_path / "m", {"a": TensorInfo((2,), torch.float32)}) as writer:
                for name, tensor in tensors:
                    writer.write(name, tensor)

        with pytest.raises(error, match=text):
            attempt()
        assert nothing_left(tmp_path)


class TestAllOrNothing:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_an_error_in_the_middle_leaves_nothing(self, tmp_path: Path, error: type[BaseException]) -> None:
        tensors = {"a": torch.zeros(10), "b": torch.zeros(10)}

        def attempt() -> None:
            with CheckpointWriter(tmp_path / "m", infos(tensors)) as writer:
                writer.write("a", tensors["a"])
                raise error

        with pytest.raises(error):
            attempt()
        assert nothing_left(tmp_path)

    @pytest.mark.parametrize("function", ["tensor_bytes", "_fsync", "os.fsync"])
    def test_a_full_disk_is_one_sentence_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if function == "os.fsync":
            monkeypatch.setattr(writer_module.os, "fsync", fail)
        else:
            monkeypatch.setattr(writer_module, function, fail)
        with pytest.raises(StorageError, match=r"cannot be written \(No space left.*\); free some space"):
            write(tmp_path / "m", {"a": torch.zeros(4)})
        assert nothing_left(tmp_path)

    def test_a_disk_known_to_be_too_small_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: usage._replace(free=15))
        with pytest.raises(StorageError, match="16 bytes of weights do not fit on a disk with 15 bytes free"):
            write(tmp_path / "m", {"a": torch.zeros(4)})
        assert nothing_left(tmp_path)

    def test_a_folder_that_appears_meanwhile_is_not_touched(self, tmp_path: Path) -> None:
        def attempt() -> None:
            with CheckpointWriter(tmp_path / "m", {"a": TensorInfo((1,), torch.float32)}) as writer:
                writer.write("a", torch.zeros(1))
                (tmp_path / "m").mkdir()
                (tmp_path / "m" / "theirs").write_text("x")

        with pytest.raises(ConfigError, match="nothing is overwritten"):
            attempt()
        assert [path.name for path in tmp_path.rglob("*")] == ["m", "theirs"]


class TestOutputConfig:
    def test_names_the_dtype_of_the_weights(self) -> None:
        """Under the key that the source uses, at the top and in sections."""
        old = output_config({"torch_dtype": "float32", "a": {"torch_dtype": "float16"}}, torch.bfloat16, tied=False)
        new = output_config({"dtype": "float32", "_name_or_path": "x"}, torch.bfloat16, tied=False)

        assert old == {"torch_dtype": "bfloat16", "a": {"torch_dtype": "bfloat16"}}
        assert new == {"dtype": "bfloat16"}
        assert output_config({}, torch.float32, tied=False) == {"dtype": "float32"}

    def test_says_tied_only_where_the_head_is_not_stored(self) -> None:
        config = {"tie_word_embeddings": True, "dtype": "float32"}

        assert output_config(config, torch.float32, tied=True)["tie_word_embeddings"] is True
        assert output_config(config, torch.float32, tied=False)["tie_word_embeddings"] is False
