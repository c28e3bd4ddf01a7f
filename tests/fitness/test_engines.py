"""Which engine a search runs on, decided before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError
from evomerge.fitness import EngineConfig, Workplace, choose_engine
from evomerge.fitness import engines as module
from evomerge.fitness.vllm.installed import Build, Installed, installed

BASE = Path(__file__).parents[2] / "evomerge" / "demo" / "models" / "base"
HERE = Workplace()


def auto(**keys: Any) -> EngineConfig:
    return EngineConfig(kind="auto", **keys)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a vLLM for CPUs or GPUs, or none, be what is installed; it implements Llama alone."""

    def set_to(kind: Build | None) -> None:
        found = None if kind is None else Installed("0.32.0", kind, Path("-"))
        monkeypatch.setattr(module, "installed", lambda: found)
        monkeypatch.setattr(module, "architectures", lambda _: frozenset({"LlamaForCausalLM"}))
        monkeypatch.setattr("evomerge.fitness.vllm.options.argument_names", lambda _: frozenset({"max_num_seqs"}))

    return set_to


def test_auto_picks_vllm_where_it_serves_the_model_and_says_why(build: Any) -> None:
    build("cpu")
    choice = choose_engine(auto(), BASE, HERE)
    assert choice.kind == "vllm"
    assert choice.reason == "it serves this model here; version 0.32.0 for the CPU"
    build("cuda")
    assert choose_engine(auto(), BASE, Workplace(gpus=1)).kind == "vllm"


@pytest.mark.parametrize(
    ("kind", "config", "gpus", "text"),
    [
        (None, {}, 0, "vLLM is not installed; install it with"),
        ("cuda", {}, 0, "a worker has 0 of the 1 that it needs; set executor.gpus_per_worker"),
        ("cuda", {"tensor_parallel": 4}, 2, "a worker has 2 of the 4 that it needs"),
        ("cuda", {"device": "cpu"}, 1, "the installed vLLM is built for GPUs, not for 'cpu'"),
        ("cpu", {"device": "cuda:1"}, 1, "the installed vLLM is built for the CPU, not for 'cuda:1'"),
    ],
)
def test_where_vllm_cannot_serve_auto_takes_transformers_and_an_explicit_vllm_is_one_sentence(
    build: Any, kind: Build | None, config: dict[str, Any], gpus: float, text: str
) -> None:
    build(kind)
    choice = choose_engine(auto(**config), BASE, Workplace(gpus=gpus))
    assert choice.kind == "transformers"
    assert text in choice.reason
    with pytest.raises(ConfigError, match=r"^engine\.(kind|device): .* `kind: transformers`$") as caught:
        choose_engine(EngineConfig(kind="vllm", **config), BASE, Workplace(gpus=gpus))
    assert text in str(caught.value)


def test_a_model_that_vllm_does_not_implement_runs_on_transformers(build: Any, tmp_path: Path) -> None:
    build("cpu")
    shutil.copytree(BASE, tmp_path / "odd")
    config = json.loads((BASE / "config.json").read_text()) | {"architectures": ["OddForCausalLM"]}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    choice = choose_engine(auto(), tmp_path / "odd", HERE)
    assert (choice.kind, "does not implement OddForCausalLM" in choice.reason) == ("transformers", True)
    with pytest.raises(ConfigError, match=r"does not implement OddForCausalLM; .*use `kind: transformers`"):
        choose_engine(EngineConfig(kind="vllm"), tmp_path / "odd", HERE)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"engine_args": {"max_num_seq": 1}}, "did you mean 'max_num_seqs'"),
        ({"tensor_parallel": 3}, "does not divide the model's 4 attention heads"),
        ({"max_length": 1000}, "more than the 64 that the model was built for"),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "vllm"])
def test_a_wrong_option_is_an_error_and_no_reason_to_fall_back(
    build: Any, kind: str, config: dict[str, Any], text: str
) -> None:
    build("cpu")
    with pytest.raises(ConfigError, match=text):
        choose_engine(EngineConfig.model_validate({"kind": kind, **config}), BASE, HERE)


def test_transformers_asks_nothing_of_vllm(build: Any) -> None:
    build(None)
    assert choose_engine(EngineConfig(), BASE, HERE).kind == "transformers"


def test_of_another_clusters_workers_an_explicit_engine_is_believed_and_auto_is_careful(build: Any) -> None:
    build(None)
    away = Workplace(is_here=False, gpus=1)
    assert choose_engine(EngineConfig(kind="vllm"), BASE, away).kind == "vllm"
    assert choose_engine(auto(), BASE, away).kind == "transformers"


def test_a_device_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.device: no device 'gpu'"):
        choose_engine(EngineConfig(device="gpu"), BASE, HERE)


def test_the_installed_vllm_is_found_without_importing_it() -> None:
    import sys

    found = installed()
    if found is None:
        pytest.skip("vLLM is not installed")
    assert (found.folder / "engine" / "arg_utils.py").is_file()
    assert found.version.count(".") >= 2
    assert "evomerge.fitness.vllm.engine" not in sys.modules or "vllm" in sys.modules
