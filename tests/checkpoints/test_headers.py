"""Models by their headers alone: the same layout and shapes as of the whole model, and no weight is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import open_checkpoint, open_headers
from evomerge.errors import SourceError
from evomerge.testing.checkpoints import write_tiny_llama


def test_headers_show_what_the_whole_model_shows(tmp_path: Path) -> None:
    for shards in (1, 3):
        write_tiny_llama(tmp_path / str(shards), dtype=torch.bfloat16, shards=shards)
        headers, whole = open_headers(str(shards), None, tmp_path), open_checkpoint(tmp_path / str(shards))
        assert headers.names() == whole.names()
        assert all(headers.info(name) == whole.info(name) for name in whole.names())
        assert headers.layout.num_layers == whole.layout.num_layers
        assert not headers.remote


def test_they_identify_no_weights(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    headers = open_headers("model", None, tmp_path)
    assert headers.content_hash.startswith("headers:")
    assert headers.content_hash == open_headers("model", None, tmp_path).content_hash
    assert headers.content_hash != open_headers(str(write_tiny_llama(tmp_path / "other")), None, tmp_path).content_hash
    assert headers.content_hash != open_checkpoint(folder).content_hash


def test_a_head_that_is_said_to_be_tied_is_tied_without_being_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_llama(tmp_path / "model", tied=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    assert open_checkpoint(folder).tied == {}
    monkeypatch.setattr("evomerge.checkpoints.files.WeightFile.tensor", lambda *_: pytest.fail("a weight was read"))
    assert open_headers("model", None, tmp_path).tied == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize("name", ["nowhere", "file.txt"])
def test_what_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(SourceError, match=name):
        open_headers(name, None, tmp_path)
