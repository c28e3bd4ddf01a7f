from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import check_finite, open_checkpoint
from evomerge.checkpoints.digests import canonical_config
from evomerge.errors import SourceError
from evomerge.testing.checkpoints import (
    tiny_llama_config,
    tiny_llama_tensors,
    write_checkpoint,
    write_tiny_llama,
)

INDEX = "model.safetensors.index.json"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_every_tensor_bit_by_bit(tmp_path: Path, shards: int) -> None:
    """Tensors come sorted, from one file or from shards."""
    tensors = tiny_llama_tensors(tiny_llama_config())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", tiny_llama_config(), tensors, shards=shards))

    assert checkpoint.names() == tuple(sorted(tensors))
    assert checkpoint.num_layers == 2
    for name, tensor in tensors.items():
        assert checkpoint.info(name).shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor)
    with pytest.raises(KeyError):
        checkpoint.tensor("no.such.tensor")


class TestContentHash:
    def test_is_independent_of_sharding_place_and_volatile_keys(self, tmp_path: Path) -> None:
        """What the model is counts, not how it is stored."""
        one = write_tiny_llama(tmp_path / "one")
        many = write_tiny_llama(tmp_path / "many", shards=3)
        edit_json(many / "config.json", transformers_version="0.0", _name_or_path="elsewhere")

        assert open_checkpoint(one).content_hash == open_checkpoint(many).content_hash

    def test_changes_with_weights_dtype_and_configuration(self, tmp_path: Path) -> None:
        """Every one of these makes another model."""
        hashes = {
            open_checkpoint(write_tiny_llama(tmp_path / "a")).content_hash,
            open_checkpoint(write_tiny_llama(tmp_path / "b", seed=1)).content_hash,
            open_checkpoint(write_tiny_llama(tmp_path / "c", dtype=torch.bfloat16)).content_hash,
        }
        edit_json(tmp_path / "a" / "config.json", rope_theta=1e6)
        hashes.add(open_checkpoint(tmp_path / "a").content_hash)

        assert len(hashes) == 4

    def test_volatile_keys_of_inner_sections_do_not_count(self) -> None:
        """Composite configurations repeat them inside."""
        assert canonical_config({"text_config": {"dtype": "x", "n": 1}}) == {"text_config": {"n": 1}}

    def test_comes_from_the_cache_while_the_file_is_unchanged(
        self, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A large model is hashed once; another size or time of change hashes it anew."""
        file = write_tiny_llama(tmp_path / "m") / "model.safetensors"
        old = time.time_ns() - 10**10
        os.utime(file, ns=(old, old))
        before = open_checkpoint(tmp_path / "m").content_hash
        counted: list[str] = []
        digest = "evomerge.checkpoints.digests._digest"
        monkeypatch.setattr(digest, lambda _, name: counted.append(name) or "0" * 64)

        assert open_checkpoint(tmp_path / "m").content_hash == before
        assert counted == []

        os.utime(file, ns=(old + 1, old + 1))
        assert open_checkpoint(tmp_path / "m").content_hash != before
        assert counted

    def test_a_broken_cache_is_ignored(self, tmp_path: Path, own_cache: Path) -> None:
        """It is only a cache."""
        file = write_tiny_llama(tmp_path / "m") / "model.safetensors"
        os.utime(file, ns=(10**18, 10**18))
        before = open_checkpoint(tmp_path / "m").content_hash
        (entry,) = (own_cache / "digests").iterdir()
        good = json.loads(entry.read_text())

        for broken in (
            "{",
            "[]",
            json.dumps({**good, "tensors": {"x": "y"}}),
            json.dumps({**good, "tensors": 1}),
        ):
            entry.write_text(broken)
            assert open_checkpoint(tmp_path / "m").content_hash == before

    def test_a_file_that_just_changed_is_not_trusted(self, tmp_path: Path, own_cache: Path) -> None:
        """A second change within the clock's granularity would go unnoticed."""
        write_tiny_llama(tmp_path / "m")

        assert open_checkpoint(tmp_path / "m").content_hash
        assert not own_cache.exists()

    def test_a_cache_that_cannot_be_written_costs_nothing_but_time(self, tmp_path: Path, own_cache: Path) -> None:
        """For instance because its folder is a file."""
        file = write_tiny_llama(tmp_path / "m") / "model.safetensors"
        os.utime(file, ns=(10**18, 10**18))
        own_cache.write_text("")

        assert open_checkpoint(tmp_path / "m").content_hash


class TestTiedHead:
    def test_is_left_out_whether_stored_or_not(self, tmp_path: Path) -> None:
        """A repeated copy and an absent one are the same model."""
        config = tiny_llama_config(tied=True)
        tensors = tiny_llama_tensors(config)
        absent = open_checkpoint(write_checkpoint(tmp_path / "absent", config, tensors))
        repeated = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        stored = open_checkpoint(write_checkpoint(tmp_path / "stored", config, repeated))

        assert absent.tied == stored.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        assert absent.names() == stored.names()
        assert absent.content_hash == stored.content_hash

    def test_that_differs_is_a_tensor_of_its_own(self, tmp_path: Path) -> None:
        """transformers does not tie what differs, whatever the configuration says."""
        tensors = tiny_llama_tensors(tiny_llama_config())
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", tiny_llama_config(tied=True), tensors))

        assert checkpoint.tied == {}
        assert "lm_head.weight" in checkpoint.names()


class TestRefusals:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such folder"):
            open_checkpoint(tmp_path / "none")

    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"no weights here; expected model\.safetensors"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
    def test_pickled_weights(self, tmp_path: Path, name: str) -> None:
        """The text says why, and what to do."""
        (tmp_path / name).write_bytes(b"\x80\x04.")
        with pytest.raises(SourceError, match=f"{name}.*can run any code.*convert them to safetensors"):
            open_checkpoint(tmp_path)

    def test_an_adapter(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(SourceError, match="an adapter, not a model"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_a_truncated_file(self, tmp_path: Path, keep: int) -> None:
        """Wherever it was cut, the file is named."""
        file = write_tiny_llama(tmp_path / "m") / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(SourceError, match=r"model\.safetensors: not a whole safetensors file .* truncated"):
            open_checkpoint(tmp_path / "m")

    def test_a_git_lfs_pointer(self, tmp_path: Path) -> None:
        file = write_tiny_llama(tmp_path / "m") / "model.safetensors"
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(SourceError, match="Git LFS pointer"):
            open_checkpoint(tmp_path / "m")

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(SourceError, match=r"names the shard model-00002-of-00002\.safetensors, which is missing"):
            open_checkpoint(folder)

    def test_an_index_that_names_a_tensor_its_shard_lacks(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        edit_json(folder / INDEX, weight_map={**weight_map, "extra": next(iter(weight_map.values()))})
        with pytest.raises(SourceError, match=r"'extra' in .* which does not hold it"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/x.safetensors", "a\\..\\x.safetensors"])
    def test_an_index_that_leaves_the_folder(self, tmp_path: Path, name: str) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        write_tiny_llama(tmp_path / "other")
        edit_json(folder / INDEX, weight_map={"x": name})
        with pytest.raises(SourceError, match="outside of the checkpoint folder"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("value", ["weights.bin", 3, None])
    def test_an_index_of_other_files(self, tmp_path: Path, value: object) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        edit_json(folder / INDEX, weight_map={"x": value})
        with pytest.raises(SourceError, match="only safetensors files are read"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("value", [None, [], {}])
    def test_an_index_without_a_map(self, tmp_path: Path, value: object) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        edit_json(folder / INDEX, weight_map=value)
        with pytest.raises(SourceError, match="expected a `weight_map`"):
            open_checkpoint(folder)

    def test_several_files_without_an_index(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "m", shards=2)
        (folder / INDEX).unlink()
        with pytest.raises(SourceError, match=r"2 safetensors files .* but no model\.safetensors\.index\.json"):
            open_checkpoint(folder)

    def test_a_missing_configuration(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "m")
        (folder / "config.json").unlink()
        with pytest.raises(SourceError, match=r"config\.json: no such file"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b""])
    def test_an_invalid_configuration(self, tmp_path: Path, text: bytes) -> None:
        folder = write_tiny_llama(tmp_path / "m")
        (folder / "config.json").write_bytes(text)
        with pytest.raises(SourceError, match=r"config\.json: .*restore the file"):
            open_checkpoint(folder)

    def test_quantised_weights(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "m")
        edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
        with pytest.raises(SourceError, match="quantised"):
            open_checkpoint(folder)
        tensors = {**load_file(folder / "model.safetensors"), "x": torch.zeros(2).to(torch.float8_e4m3fn)}
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(SourceError, match="'x' is stored as F8_E4M3"):
            open_checkpoint(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_weights_that_are_not_finite(self, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
        config = tiny_llama_config()
        tensors = tiny_llama_tensors(config, dtype=dtype)
        sound = open_checkpoint(write_checkpoint(tmp_path / "sound", config, tensors))
        tensors["model.norm.weight"][3] = value
        broken = open_checkpoint(write_checkpoint(tmp_path / "broken", config, tensors))

        check_finite(sound, "math")
        with pytest.raises(SourceError, match=r"source 'math': tensor 'model\.norm\.weight' has NaN"):
            check_finite(broken, "math")


def test_a_copied_folder_is_the_same_model(tmp_path: Path) -> None:
    """Paths do not enter the content hash."""
    one = write_tiny_llama(tmp_path / "one")
    shutil.copytree(one, tmp_path / "deep" / "two")

    assert open_checkpoint(one).content_hash == open_checkpoint(tmp_path / "deep" / "two").content_hash
