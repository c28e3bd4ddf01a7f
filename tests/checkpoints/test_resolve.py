from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from evomerge.checkpoints import resolve, resolve_model, zoo_names
from evomerge.errors import SourceError
from evomerge.testing.checkpoints import write_tiny_llama
from tests.checkpoints.hub import serve


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "models"
    for name in ("base", "sums"):
        write_tiny_llama(root / name)
    monkeypatch.setattr(resolve, "_ZOO_ROOT", root)
    return root


def test_embedded_models_have_names(zoo: Path, tmp_path: Path) -> None:
    assert zoo_names() == ("base", "sums")
    assert resolve_model("zoo:sums", None, tmp_path) == zoo / "sums"


@pytest.mark.parametrize("name", ["zoo:sum", "zoo:../models/sums", "zoo:"])
def test_an_unknown_embedded_model(zoo: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"no embedded model of that name.*sums"):
        resolve_model(name, None, tmp_path)


def test_folders_start_at_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the working folder; absolute ones stand for themselves, and a folder goes before a hub id."""
    folder = write_tiny_llama(tmp_path / "docs" / "org" / "model")
    monkeypatch.chdir(tmp_path)

    assert resolve_model("org/model", None, tmp_path / "docs") == folder
    assert resolve_model("./org/model", None, tmp_path / "docs").resolve() == folder.resolve()
    assert resolve_model(str(folder), None, tmp_path) == folder


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/none/of/this", "x" * 5000, "a\0b", "~nobody/x"])
def test_a_word_that_is_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"no such folder.* not a hub id"):
        resolve_model(name, None, tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="this is a file; give the folder"):
        resolve_model("model.safetensors", None, tmp_path)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m")
    with pytest.raises(SourceError, match="only a hub id has a revision"):
        resolve_model("m", "main", tmp_path)


def test_a_hub_id_downloads_neither_pickle_nor_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        seen.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    assert resolve_model("org/model", "abc", tmp_path) == tmp_path
    assert (seen["repo_id"], seen["revision"]) == ("org/model", "abc")
    names = [
        "model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja", "pytorch_model.bin",
        "modeling.py", "tokenizer.py", "original/consolidated.00.pth", "onnx/model.json", "consolidated.safetensors",
    ]  # fmt: skip
    kept = list(
        huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=seen["allow_patterns"], ignore_patterns=seen["ignore_patterns"]
        )
    )
    assert kept == names[:4]


class TransportError(Exception):
    """As an HTTP library raises it: of no class that is known here."""


def bare(kind: type[Exception]) -> Exception:
    """Return an error of the hub client without the response that it would carry."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (bare(errors.GatedRepoError), "access is restricted"),
        (bare(errors.RevisionNotFoundError), "no such revision"),
        (bare(errors.RepositoryNotFoundError), "check its spelling or log in"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached"),
        (TransportError("no route\nto host"), r"cannot be downloaded \(no route\)"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_every_failure_of_the_hub_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match=f"model 'org/model' at revision 'v1': .*{text}") as caught:
        resolve_model("org/model", "v1", tmp_path)
    assert "\n" not in str(caught.value)


FETCH = """
import sys, time
from pathlib import Path
from evomerge.checkpoints.resolve import resolve_model
time.sleep(max(0.0, float(sys.argv[1]) - time.time()))
print(resolve_model("org/model", None, Path("/")))
"""


def test_workers_that_start_together_fetch_a_model_once(tmp_path: Path) -> None:
    """Three processes of a machine with an empty cache: each file is sent once, and all get the same folder."""
    model = tmp_path / "hub" / "org" / "model"
    model.mkdir(parents=True)
    sizes = {"config.json": 2, "model.safetensors": 3_000_000, "tokenizer.json": 50_000}
    for name, size in sizes.items():
        (model / name).write_bytes(b"{}" if size == 2 else os.urandom(size))
    with serve(tmp_path / "hub") as hub:
        places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | places
        command = [sys.executable, "-c", FETCH, str(time.time() + 2)]
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    folders = {out.strip() for out, _ in answers}
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: (model / name).read_bytes() for name in sizes
    }
    assert hub.sent == {f"org/model/{name}": size for name, size in sizes.items()}
