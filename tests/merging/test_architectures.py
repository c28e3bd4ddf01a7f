"""Merging is exact for every architecture: through the command line, and by what plain transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import open_checkpoint
from evomerge.cli.main import run_command
from evomerge.documents import dump_yaml
from tests.merging.architectures import CAUSAL, KINDS, computed, mean, shard, stored, write_model, write_weights

# transformers warns of fast kernels that are missing here.
pytestmark = pytest.mark.filterwarnings("ignore")


def merged(folder: Path, sources: list[str], weights: list[float], out: str, **keys: Any) -> Path:
    """Merge linearly by the command line."""
    aliases = [f"s{index}" for index in range(len(sources))]
    recipe = {
        "recipe": 1,
        "sources": {alias: {"model": name} for alias, name in zip(aliases, sources, strict=True)},
        "dtype": "float32",
        "blend": {"method": "linear", "weight": dict(zip(aliases, weights, strict=True))},
        **keys,
    }
    (folder / f"{out}.yaml").write_text(dump_yaml(recipe))
    assert run_command(["merge", str(folder / f"{out}.yaml"), str(folder / out)]) == 0
    return folder / out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    for kind in KINDS:
        for seed, name in enumerate(("a", "b")):
            write_model(folder / kind / name, kind, seed)
    return folder


@pytest.mark.parametrize("kind", KINDS)
class TestEveryArchitecture:
    def test_a_model_merged_with_itself_is_that_model(self, kind: str, models: Path) -> None:
        out = merged(models / kind, ["a", "a"], [0.5, 0.5], "itself")
        assert torch.equal(computed(out, kind), computed(models / kind / "a", kind))

    def test_weight_one_on_one_source_is_that_source(self, kind: str, models: Path) -> None:
        out = merged(models / kind, ["a", "b"], [0.0, 1.0], "one")
        expected = computed(models / kind / "b", kind)
        assert torch.equal(computed(out, kind), expected)
        assert not torch.equal(computed(models / kind / "a", kind), expected)

    def test_an_average_is_the_average_of_the_state_dicts(self, kind: str, models: Path) -> None:
        out = merged(models / kind, ["a", "b"], [0.5, 0.5], "average")
        found, expected = stored(out), mean(stored(models / kind / "a"), stored(models / kind / "b"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert computed(out, kind).isfinite().all()

    def test_every_layer_has_its_parts(self, kind: str, models: Path) -> None:
        """Nothing of a layer is taken for an embedding, and every layer has more than its norms."""
        layout = open_checkpoint(models / kind / "a").layout
        names = stored(models / kind / "a")
        assert layout.num_layers == 2
        for layer in range(layout.num_layers):
            modules = {layout.place(layout.full_name(layer, part)).module for part in layout.parts(layer)}
            assert modules == ({"other"} if kind.startswith("mamba") else {"attention", "mlp", "other"}) - (
                {"other"} if kind == "bert" else set()
            )
        outside = {layout.place(name).module for name in names if layout.place(name).layer is None}
        assert "embeddings" in outside


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "mamba"])
def test_shards_do_not_matter(kind: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_model(tmp_path / name, kind, seed)
    expected = computed(merged(tmp_path, ["a", "b"], [0.5, 0.5], "whole"), kind)
    shard(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    assert torch.equal(computed(merged(tmp_path, ["a", "b"], [0.5, 0.5], "average"), kind), expected)


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind != "phi3"])
def test_a_tied_head_stays_tied(kind: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_model(tmp_path / name, kind, seed, tie_word_embeddings=True)
    out = merged(tmp_path, ["a", "b"], [0.0, 1.0], "one")

    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert stored(out).keys() == stored(tmp_path / "b").keys()
    assert torch.equal(computed(out, kind), computed(tmp_path / "b", kind))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_merged_one_to_one(kind: str, models: Path) -> None:
    """A checkpoint names every expert; expert 1 of the merge is made of expert 1 of the sources."""
    out = merged(models / kind, ["a", "b"], [0.25, 0.75], "experts")
    one, other, found = (stored(folder) for folder in (models / kind / "a", models / kind / "b", out))
    experts = [name for name in found if ".experts.1." in name]
    assert len(experts) == 3 * (2 if kind == "mixtral" else 1)  # every second layer is dense there
    for name in experts:
        assert torch.allclose(found[name], 0.25 * one[name] + 0.75 * other[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_the_diagonal_of_a_state_space_is_averaged_in_its_log_domain(kind: str, models: Path) -> None:
    """A = -exp(A_log) is stored as A_log, so an average of models has the geometric mean of their A."""
    out = merged(models / kind, ["a", "b"], [0.5, 0.5], "logs")
    one, other, found = (
        {name: -tensor.double().exp() for name, tensor in stored(folder).items() if name.endswith("A_log")}
        for folder in (models / kind / "a", models / kind / "b", out)
    )
    assert len(found) == 2
    for name, tensor in found.items():
        assert torch.allclose(tensor, -(one[name] * other[name]).sqrt(), rtol=1e-6)
        assert not torch.allclose(tensor, (one[name] + other[name]) / 2, rtol=1e-3)


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """Against float64, rounded by the definition: to the nearest number of 8 bits, ties to even."""
    for seed, name in enumerate(("a", "b")):
        folder = write_model(tmp_path / name, "qwen3", seed)
        write_weights(folder, {key: tensor.bfloat16() for key, tensor in stored(folder).items()})
    out = merged(tmp_path, ["a", "b"], [0.5, 0.5], "average", dtype="bfloat16")
    one, other = stored(tmp_path / "a"), stored(tmp_path / "b")
    for name, tensor in stored(out).items():
        assert tensor.dtype == torch.bfloat16
        exact = (one[name].double() + other[name].double()) / 2
        mantissa, exponent = torch.frexp(exact)
        rounded = torch.ldexp((mantissa * 256).round(), exponent - 8)
        assert torch.equal(tensor.double(), rounded), name
