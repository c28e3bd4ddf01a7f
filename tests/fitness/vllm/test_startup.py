"""Why vLLM does not start, in one sentence: on what vLLM and torch really said, and on real starts that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from evomerge.errors import ConfigError, EvaluationError, EvomergeError, SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm import startup
from evomerge.fitness.vllm.installed import Installed, installed
from evomerge.fitness.vllm.startup import explain, starting
from evomerge.testing.checkpoints import write_tiny_llama

VLLM = EngineConfig(kind="vllm")
KV = (
    "Available memory on node 0 (10.57/11.59 GiB) on kv cache allocation is less than requested memory for kv "
    "(1000.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by others."
)


def pydantic(text: str, model: str = "ModelConfig") -> str:
    return f"1 validation error for {model}\n  Value error, {text} [type=value_error, input_value=ArgsKwargs(()), x]"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError(KV), EvaluationError, r"too little memory \(Available memory on node 0 .*1000\.0 GiB\)\); change"),
        (RuntimeError(f"Worker failed with error '{KV}', please check"), EvaluationError, "too little memory"),
        (ValueError("No available memory for the cache blocks. Try increasing"), EvaluationError, "too little memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), EvaluationError, "too little memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
            EvaluationError,
            "too little memory",
        ),
        (
            ValueError("Free memory on device cuda:0 (10.1/79.1 GiB) on startup is less than desired GPU memory"),
            EvaluationError,
            "too little memory",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            ConfigError,
            "`pip uninstall torchvision torchaudio torchcodec`",
        ),
        (ImportError("/x/vllm/_C.abi3.so: undefined symbol: _ZN3c10"), ConfigError, "does not fit this torch"),
        (ImportError("libcudart.so.13: cannot open shared object file"), ConfigError, "does not fit this torch"),
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), ConfigError, "vLLM is not installed; install it"),
        (
            ValueError(
                pydantic("Model architectures ['ReformerModelWithLMHead'] are not supported for now. Supported")
            ),
            ConfigError,
            r"does not support this model \(Model architectures \['Reformer.*'\] are not supported for now\); use",
        ),
        (
            ValueError(pydantic("User-specified max_model_len (9) is greater than the derived max_model_len (8). To")),
            ConfigError,
            r"engine\.max_length: vLLM refuses the context \(User-specified max_model_len \(9\) is greater than the d",
        ),
        (
            ValueError(pydantic("Total number of attention heads (4) must be divisible by tensor parallel size (3).")),
            ConfigError,
            r"engine\.tensor_parallel: vLLM refuses it \(Total number of attention heads \(4\) must be divisible by",
        ),
        (
            RuntimeError("Unsupported CPU attention configuration: head_dim=24 isa=0 kv_cache_idx=0"),
            ConfigError,
            "use `dtype: float32`",
        ),
        (
            RuntimeError("WorkerProc initialization failed due to an exception in a background process."),
            EvaluationError,
            "one of vLLM's 1 processes did not start or died",
        ),
        (RuntimeError("cancelled"), EvaluationError, "processes did not start or died"),
        (RuntimeError("something new\nand more"), EvaluationError, r"did not start \(RuntimeError: something new\)"),
    ],
)
def test_what_was_said_becomes_one_sentence(error: Exception, kind: type[EvomergeError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught, starting(VLLM):
        raise error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.__cause__ is error


def test_the_cause_counts_where_the_outer_error_says_nothing() -> None:
    outer = RuntimeError("Failed to load the engine")
    outer.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    assert "torchcodec" in str(explain(outer, VLLM))


def test_arguments_that_vllm_refuses_are_named() -> None:
    error = ValueError(
        "2 validation errors for SchedulerConfig\nmax_num_seqs\n  Input should be greater than 0 [type=x]"
    )
    text = str(explain(error, EngineConfig(kind="vllm", engine_args={"max_num_seqs": 0})))
    assert text == (
        "engine.engine_args: vLLM refuses them (max_num_seqs: Input should be greater than 0); "
        "correct or remove max_num_seqs"
    )
    assert isinstance(explain(error, VLLM), EvaluationError)


def test_what_evomerge_says_passes_unchanged() -> None:
    error = SourceError("the file is gone")
    with pytest.raises(SourceError) as caught, starting(VLLM):
        raise error
    assert caught.value is error


def test_on_a_gpu_the_share_of_its_memory_is_the_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "installed", lambda: Installed("0", "cuda", Path()))
    text = str(explain(RuntimeError("CUDA out of memory."), EngineConfig(kind="vllm", gpu_memory=0.7)))
    assert "change engine.gpu_memory (now 0.7)" in text


STARTS = """
import json, sys, time
from pathlib import Path
from evomerge.errors import EvomergeError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.engines import create_engine
from evomerge.recipe import Recipe

if __name__ == "__main__":
    for model, given in json.loads(sys.argv[1]):
        blend = {"method": "linear", "weight": 1.0}
        recipe = Recipe.from_mapping({"recipe": 1, "sources": {"a": {"model": model}}, "blend": blend})
        try:
            config = EngineConfig(kind="vllm", threads=1, **given)
            engine = create_engine(recipe, base_dir=Path("/"), config=config, batch_size=8)
            engine.load(recipe)
            print(json.dumps(["started", ""]), flush=True)
        except EvomergeError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
    if "stay" in sys.argv:
        time.sleep(600)
"""
BASE = "zoo:base"


def starts(given: list[tuple[str, dict[str, Any]]], *more: str) -> subprocess.Popen[str]:
    """Start one engine after the other in a process of its own, which prints what became of each."""
    command = [sys.executable, "-W", "ignore", "-c", STARTS, json.dumps(given), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


needs_vllm = pytest.mark.skipif(installed() is None, reason="vLLM is not installed")


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_starts_that_fail_say_why_and_the_next_one_works_in_bfloat16_too(tmp_path: Path) -> None:
    """Processors that list AMX end a process that did not ask for it, so bfloat16 is tried for real."""
    wide = str(write_tiny_llama(tmp_path / "wide", hidden=64))
    process = starts(
        [
            (BASE, {"kv_cache_gib": 100000}),
            (BASE, {"engine_args": {"max_num_seqs": 0}}),
            (BASE, {"engine_args": {"attention_backend": "nonsense"}}),
            (BASE, {"dtype": "bfloat16"}),
            (wide, {"dtype": "bfloat16"}),
        ]
    )
    out, err = process.communicate()
    answers = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    kinds = ["EvaluationError", "ConfigError", "ConfigError", "ConfigError", "started"]
    assert [kind for kind, _ in answers] == kinds, (answers, err)
    words = ["too little memory", "engine.engine_args", "engine.engine_args", "use `dtype: float32`", ""]
    assert [word in text for (_, text), word in zip(answers, words, strict=True)] == [True] * 5


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_process_of_two_ranks_outlives_a_killed_parent() -> None:
    parent = starts([(BASE, {"tensor_parallel": 2})], "stay")
    try:
        assert parent.stdout is not None
        assert json.loads(parent.stdout.readline())[0] == "started"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
