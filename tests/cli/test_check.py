"""`evomerge check`: what is known of a search, a recipe or a mergekit file before a weight is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.documents import dump_yaml
from evomerge.testing.adapters import write_lora
from evomerge.testing.checkpoints import write_tiny_llama
from tests.checkpoints.hub import Hub, serve
from tests.cli.conftest import Cli


def write_recipe(folder: Path, sources: dict[str, Any], **keys: Any) -> Path:
    document = {"recipe": 1, "sources": sources, "dtype": "bfloat16", "blend": {"method": "linear"}, **keys}
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(document))
    return path


def local(*names: str) -> dict[str, Any]:
    return {name: {"model": name} for name in names}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        folder = write_tiny_llama(tmp_path / name, seed, dtype=torch.bfloat16)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return tmp_path


class TestRecipe:
    def test_says_what_is_known(self, cli: Cli, models: Path) -> None:
        facts = cli("check", write_recipe(models, local("one", "two")), "--json").json
        parameters = sum(tensor.numel() for tensor in load_file(models / "one" / "model.safetensors").values())
        one = facts["sources"]["one"]
        assert (facts["kind"], facts["problems"], facts["notes"]) == ("recipe", [], [])
        assert (one["architecture"], one["dtype"], one["license"], one["layers"]) == ("llama", "bfloat16", "mit", 2)
        assert (one["parameters"], one["bytes"], one["download_bytes"]) == (parameters, 2 * parameters, 0)
        assert (one["tokens"], one["vocabulary"], one["chat_template"]) == (32, 32, None)
        assert one["tokenizer"] == facts["sources"]["two"]["tokenizer"]
        assert facts["merge"]["parameters"] == parameters
        assert facts["disk"]["needed"] == facts["merge"]["bytes"] == 2 * parameters
        assert facts["time"]["bytes_read"] == 4 * parameters
        assert facts["time"]["seconds"] > facts["time"]["merging_seconds"] > 0
        assert facts["memory"]["peak"] > 2 * parameters

    def test_in_words(self, cli: Cli, models: Path) -> None:
        said = cli("check", write_recipe(models, local("one", "two")))
        assert said.code == 0
        for word in ("llama", "mit", "disk:", "peak memory", "time of building it", "ready: this merge can be built"):
            assert word in said.out

    def test_reads_no_weight_and_writes_nothing(self, cli: Cli, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_recipe(models, local("one", "two"), blend={"method": "ties", "density": 0.5}, base="one")
        before = sorted(models.rglob("*"))
        with monkeypatch.context() as patch:
            patch.chdir(models)
            patch.setattr("evomerge.checkpoints.files.WeightFile.tensor", lambda *_: pytest.fail("a weight was read"))
            patch.setattr("evomerge.checkpoints.reader.file_digests", lambda *_: pytest.fail("weights were hashed"))
            assert cli("check", path).code == 0
        assert sorted(models.rglob("*")) == before

    def test_every_misfit_is_one_sentence(self, cli: Cli, models: Path) -> None:
        write_tiny_llama(models / "deep", layers=3)
        write_tiny_llama(models / "wide", hidden=32)
        names = ("one", "two", "deep", "wide", "nowhere")
        said = cli("check", write_recipe(models, local(*names[:4])))
        assert (said.code, said.out) == (2, "")
        assert said.err.count("\n") == said.err.count("error: ") == 2
        assert "'one' has 2 layers, 'deep' has 3 layers" in said.err
        assert "'wide' has a hidden size of 32" in said.err
        facts = cli("check", write_recipe(models, local(*names)), "--json")
        assert facts.code == 2
        assert set(facts.json["sources"]) == set(names[:4])
        assert "sources.nowhere" in facts.json["problems"][0]

    def test_another_architecture_is_named(self, cli: Cli, models: Path) -> None:
        config = json.loads((models / "two" / "config.json").read_text())
        (models / "two" / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
        tensors = load_file(models / "two" / "model.safetensors")
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        save_file(tensors, models / "two" / "model.safetensors")
        cli("check", write_recipe(models, local("one", "two"))).is_refusal("'one' is a 'llama'", "'two' a 'gpt_neox'")

    def test_what_a_merge_survives_is_noted(self, cli: Cli, models: Path) -> None:
        shutil.rmtree(models / "two")
        folder = write_tiny_llama(models / "two", 1)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        notes = cli("check", write_recipe(models, local("one", "two")), "--json").json["notes"]
        assert len(notes) == 3
        for words in ("bfloat16 and float32", "different chat templates", "'two' declares no licence"):
            assert any(words in note for note in notes)

    def test_weights_are_read_on_request(self, cli: Cli, models: Path) -> None:
        tensors = load_file(models / "two" / "model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, models / "two" / "model.safetensors")
        path = write_recipe(models, local("one", "two"))
        assert cli("check", path).code == 0
        cli("check", path, "--weights").is_refusal("'two'", "'model.norm.weight'", "NaN")

    def test_a_method_that_does_not_fit_its_sources(self, cli: Cli, models: Path) -> None:
        path = write_recipe(models, local("one", "two"), blend={"method": "ties"})
        cli("check", path).is_refusal("base")


def test_a_mergekit_file(cli: Cli, models: Path) -> None:
    path = models / "merge.yml"
    sources = [{"model": name, "parameters": {"weight": 0.5}} for name in ("one", "two")]
    path.write_text(dump_yaml({"merge_method": "linear", "models": sources, "dtype": "float16"}))
    facts = cli("check", path, "--json").json
    assert (facts["kind"], facts["merge"]["dtype"]) == ("mergekit", "float16")


class TestHub:
    @pytest.fixture
    def hub(self, tmp_path: Path) -> Iterator[Hub]:
        for seed, (name, shards) in enumerate((("whole", 1), ("shards", 3))):
            folder = tmp_path / "hub" / "org" / name
            write_tiny_llama(folder, seed, hidden=1024, vocab=4000, dtype=torch.bfloat16, shards=shards)
            (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        with serve(tmp_path / "hub") as hub:
            yield hub

    @staticmethod
    def check(hub: Hub, folder: Path, *sources: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own: the hub's client reads its address when it is imported."""
        path = write_recipe(folder, {name.rpartition("/")[2]: {"model": name} for name in sources} | more)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "evomerge", "check", str(path), "--json"]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    def test_of_models_there_only_headers_are_downloaded(self, hub: Hub, tmp_path: Path) -> None:
        write_lora(tmp_path / "hub" / "org" / "adapter", tmp_path / "hub" / "org" / "whole", rank=64)
        adapted = {"model": "org/whole", "adapter": "org/adapter"}
        said = self.check(hub, tmp_path, "org/whole", "org/shards", adapted=adapted)
        assert (said.returncode, said.stderr) == (0, "")
        facts = json.loads(said.stdout)
        for name in ("whole", "shards"):
            row = facts["sources"][name]
            files = list((tmp_path / "hub" / "org" / name).glob("*.safetensors"))
            assert (row["license"], row["tokens"], row["layers"]) == ("apache-2.0", 4000, 2)
            assert 0 < row["bytes"] == row["download_bytes"] <= sum(file.stat().st_size for file in files)
        weights = {name: count for name, count in hub.sent.items() if name.endswith(".safetensors")}
        assert len(weights) == len(hub.ranges) == 5
        assert max(weights.values()) <= 100_001
        assert facts["disk"]["download"] == sum(facts["sources"][name]["bytes"] for name in ("whole", "shards"))
        assert sum(weights.values()) < facts["disk"]["download"] / 10
        assert not list((tmp_path / "home").rglob("*.safetensors"))

    def test_what_the_hub_does_not_show_is_one_sentence_each(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "hub" / "org" / "pickled").mkdir()
        (tmp_path / "hub" / "org" / "pickled" / "config.json").write_text("{}")
        (tmp_path / "hub" / "org" / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
        said = self.check(hub, tmp_path, "org/whole", "org/absent", "org/pickled")
        assert said.returncode == 2
        assert said.stderr.count("\n") == said.stderr.count("error: ") == 2
        assert "'org/absent': neither a local folder nor a repository" in said.stderr
        assert "'org/pickled': no safetensors weights on the hub" in said.stderr
