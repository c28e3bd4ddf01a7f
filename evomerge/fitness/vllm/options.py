"""The options of the search file as arguments of `vllm.LLM`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.installed import INSTALL, Build, Installed, argument_names, installed
from evomerge.fitness.vllm.residency import GIB, ResidencyPlan
from evomerge.fitness.vllm.shape import ModelShape, read_shape
from evomerge.fitness.vllm.startup import permit_amx

CPU_KV_CACHE_BYTES = 4 * GIB
"""Largest KV cache on the CPU unless the search file asks for more; vLLM's default is 92 % of the machine."""
BLOCK_TOKENS = 128
"""Tokens a block of the KV cache on the CPU."""

_INSTEAD = {
    **dict.fromkeys(
        ("model", "model_weights", "revision", "code_revision", "hf_config_path", "served_model_name"), "sources"
    ),
    **dict.fromkeys(("tokenizer", "tokenizer_revision", "skip_tokenizer_init"), "tokenizer"),
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_length",
    "gpu_memory_utilization": "engine.gpu_memory",
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "tensor_parallel_size": "engine.tensor_parallel",
    "enforce_eager": "engine.eager",
    "trust_remote_code": "engine.trust_remote_code",
    "device_ids": "engine.device",
    **dict.fromkeys(("data_parallel_size", "data_parallel_size_local"), "executor.workers"),
}
"""Arguments that have an option of their own, by that option's key."""
_OURS = frozenset(
    {
        "distributed_executor_backend", "generation_config", "load_format", "logprobs_mode", "max_logprobs",
        "nnodes", "pipeline_parallel_size", "quantization", "quantization_config", "runner", "convert",
        "seed", "weight_transfer_config", "worker_cls", "worker_extension_cls",
        "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "enable_sleep_mode",
    }
)  # fmt: skip
"""Arguments without which candidates could not be swapped in, or would not be scored as they are."""


def engine_args(
    config: EngineConfig,
    model_folder: Path,
    *,
    tokenizer: Path | None = None,
    sequences: int = 64,
    plan: ResidencyPlan | None = None,
) -> dict[str, Any]:
    """Return the keyword arguments of `vllm.LLM` for a model; the caller adds `worker_extension_cls`.

    Args:
        config: the `engine:` section.
        model_folder: a checkpoint of the architecture; its weights are not read.
        tokenizer: folder of the tokenizer where it is another one.
        sequences: requests that are served at once, for the size of the KV cache on the CPU.
        plan: where the sources live; what they take of the device is taken from vLLM's share.

    Raises:
        ConfigError: for an option that this vLLM, model or device does not allow.
        SourceError: when the model's configuration cannot be read.
    """
    vllm = require_installed()
    check_engine_args(config, vllm)
    shape = read_shape(model_folder, trust_remote_code=config.trust_remote_code)
    check_shape(config, shape)
    check_dtype(config, shape, vllm.build)
    check_devices(config, vllm.build)
    arguments: dict[str, Any] = {
        "model": str(model_folder),
        "tokenizer": str(tokenizer or model_folder),
        "load_format": "dummy",  # the first candidate brings the weights
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        # Never vLLM's own choice: inside a Ray actor it would ask Ray for further workers.
        "distributed_executor_backend": "uni" if config.tensor_parallel == 1 else "mp",
        "enforce_eager": vllm.build == "cpu" if config.eager is None else config.eager,
        "trust_remote_code": config.trust_remote_code,
        "generation_config": "vllm",  # tasks say how they generate
        "seed": 0,
        "use_tqdm_on_load": False,
    }
    length = config.max_length or shape.context
    if length is not None:
        # One more than is used: vLLM always samples a token behind the last one that it is asked about.
        arguments["max_model_len"] = length + 1
    kv_cache = kv_cache_bytes(config, shape, vllm.build, sequences)
    if kv_cache is not None:
        arguments["kv_cache_memory_bytes"] = kv_cache
    if vllm.build == "cuda":
        taken = plan.device_share if plan is not None else 0.0
        arguments["gpu_memory_utilization"] = config.gpu_memory - taken
        if config.device.startswith("cuda:"):
            first = int(config.device.removeprefix("cuda:"))
            arguments["device_ids"] = list(range(first, first + config.tensor_parallel))
    return {**arguments, **config.engine_args}


def require_installed() -> Installed:
    """Return the installed vLLM.

    Raises:
        ConfigError: when there is none, with how to install it.
    """
    vllm = installed()
    if vllm is None:
        raise ConfigError(f"engine.kind: vLLM is not installed; {INSTALL}, or use `kind: transformers`")
    return vllm


def check_engine_args(config: EngineConfig, vllm: Installed) -> None:
    """Refuse arguments that vLLM does not know, and those that evomerge sets.

    Raises:
        ConfigError: naming the argument and what to write instead.
    """
    known = argument_names(vllm.folder)
    for name in config.engine_args:
        where = f"engine.engine_args: {name}"
        if name in _INSTEAD:
            raise ConfigError(f"{where}: this is set by `{_INSTEAD[name]}`; use that")
        if name in _OURS:
            raise ConfigError(
                f"{where}: evomerge sets this, because candidates are swapped into the engine; leave it out"
            )
        if name not in known:
            hint = did_you_mean(name, known - _OURS - set(_INSTEAD)) if len(name) < 60 else ""
            hint = hint if "mean" in hint else "; its engine arguments are in vLLM's documentation"
            raise ConfigError(f"{where}: vLLM {vllm.version} has no such engine argument{hint}")


def check_shape(config: EngineConfig, shape: ModelShape) -> None:
    """Refuse a context or a tensor parallelism that the model does not allow.

    Raises:
        ConfigError: naming the option, the limit and what to do.
    """
    ranks = config.tensor_parallel
    if shape.heads % ranks:
        raise ConfigError(
            f"engine.tensor_parallel: {ranks} does not divide the model's {shape.heads} attention heads; "
            f"choose one of {', '.join(map(str, _divisors(shape.heads)))}"
        )
    if shape.context is not None and config.max_length is not None and config.max_length > shape.context:
        raise ConfigError(
            f"engine.max_length: {config.max_length} tokens are more than the {shape.context} that the model was "
            "built for; lower it, or leave it out"
        )


def check_dtype(config: EngineConfig, shape: ModelShape, build: Build) -> None:
    """Refuse a dtype in which vLLM cannot run the model here.

    Raises:
        ConfigError: with the dtype to use.
    """
    if build == "cuda" or config.dtype == "float32":
        return
    if shape.head_dim % 16:
        raise ConfigError(  # its kernel stores halves of heads, 16 bytes at a time, wherever they begin
            f"engine.dtype: vLLM for the CPU would crash in {config.dtype} with this model's heads of {shape.head_dim} "
            "values, which is no multiple of 16; use `dtype: float32`"
        )
    if config.dtype == "bfloat16" and not permit_amx():
        raise ConfigError(
            "engine.dtype: this processor lists AMX, which vLLM uses in bfloat16, but the system does not permit it "
            "(it would end with SIGILL); use `dtype: float32`"
        )


def check_devices(config: EngineConfig, build: Build) -> None:
    """Refuse more ranks than this process has devices: GPUs, or processor cores.

    Raises:
        ConfigError: naming both numbers.
    """
    if build == "cuda":
        import torch

        count, what = torch.cuda.device_count(), "GPUs that this worker has"
    else:
        count, what = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, "cores"
    if config.tensor_parallel > count:
        raise ConfigError(f"engine.tensor_parallel: {config.tensor_parallel} is more than the {count} {what}; lower it")


def kv_cache_bytes(config: EngineConfig, shape: ModelShape, build: Build, sequences: int) -> int | None:
    """Return the size of the KV cache of one rank in bytes; None: what vLLM's share of a GPU leaves."""
    if config.kv_cache_gib is not None:
        return int(config.kv_cache_gib * GIB)
    if build == "cuda":
        return None
    length = config.max_length or shape.context or 2048
    one = shape.kv_bytes(-(-length // BLOCK_TOKENS) * BLOCK_TOKENS + BLOCK_TOKENS, config.dtype)
    return max(one, min(one * sequences, CPU_KV_CACHE_BYTES))


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
