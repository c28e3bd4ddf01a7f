"""Which engine a search runs on, and starting it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evomerge.errors import ConfigError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.types import Engine
from evomerge.fitness.vllm.installed import INSTALL, Installed, architectures, installed
from evomerge.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine of a search, and why it is this one."""

    kind: Literal["transformers", "vllm"]
    reason: str


@dataclass(frozen=True, slots=True)
class Workplace:
    """What is known, before they start, of the machines that workers run on."""

    is_here: bool = True
    """Whether it is this machine; of another cluster, nothing else is known."""
    gpus: float = 0
    """GPUs of one worker."""


def choose_engine(config: EngineConfig, model_folder: Path, workplace: Workplace) -> EngineChoice:
    """Decide between the engines, and refuse what the chosen one cannot do.

    Args:
        config: the `engine:` section.
        model_folder: the checkpoint whose architecture candidates have.
        workplace: where the workers run.

    Raises:
        ConfigError: for an option that the engine, the model or the device does not allow; with `kind: vllm` also
            where vLLM cannot serve at all.
        SourceError: when the model's configuration cannot be read.
    """
    check_engine(config)
    if config.kind == "transformers":
        return EngineChoice("transformers", "the search file says so")
    if config.kind == "vllm" and not workplace.is_here:
        return EngineChoice("vllm", "the search file says so; the workers of the cluster check whether they can")
    vllm = installed()
    obstacle = _obstacle(config, vllm, model_folder, workplace)
    if vllm is None or obstacle is not None:
        if config.kind == "vllm":
            raise ConfigError(f"{obstacle}, or use `kind: transformers`")
        return EngineChoice("transformers", str(obstacle).partition(": ")[2])
    _check_options(config, vllm, model_folder)
    why = "the search file says so" if config.kind == "vllm" else "it serves this model here"
    return EngineChoice("vllm", f"{why}; version {vllm.version} for {'the CPU' if vllm.build == 'cpu' else 'GPUs'}")


def check_engine(config: EngineConfig) -> None:
    """Refuse a device that no machine has; whether the worker's has it, the worker says.

    Raises:
        ConfigError: naming it.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise ConfigError(f"engine.device: no device {config.device!r:.60}; expected auto, cpu, cuda or cuda:N")


def create_engine(template: Recipe, *, base_dir: Path, config: EngineConfig, batch_size: int) -> Engine:
    """Start the engine that a configuration names, in the process that will use it.

    Raises:
        EvomergeError: when sources or engine cannot be used.
    """
    check_engine(config)
    kind = _kind_here(template, base_dir, config) if config.kind == "auto" else config.kind
    if kind == "vllm":
        from evomerge.fitness.vllm.startup import prepare, starting

        prepare(config)
        with starting(config):
            from evomerge.fitness.vllm.engine import VllmEngine

            return VllmEngine(template, base_dir=base_dir, config=config, batch_size=batch_size)
    from evomerge.fitness.transformers_engine import TransformersEngine

    return TransformersEngine(template, base_dir=base_dir, config=config, batch_size=batch_size)


def _kind_here(template: Recipe, base_dir: Path, config: EngineConfig) -> Literal["transformers", "vllm"]:
    """Decide in the process that will use the engine, where nobody did before."""
    import torch

    from evomerge.merging import open_sources

    sources = open_sources(template, base_dir, any_depth=True)
    here = Workplace(gpus=torch.cuda.device_count())
    choice = choose_engine(config, sources.models[sources.reference].folder, here)
    _log.info("engine: %s (%s)", choice.kind, choice.reason)
    return choice.kind


def _obstacle(config: EngineConfig, vllm: Installed | None, folder: Path, workplace: Workplace) -> str | None:
    """Return why vLLM cannot serve here whatever its options, as the beginning of a sentence; else nothing."""
    if vllm is None:
        return f"engine.kind: vLLM is not installed; {INSTALL}"
    wanted = config.device.partition(":")[0]
    if wanted not in ("auto", vllm.build):
        built = "the CPU" if vllm.build == "cpu" else "GPUs"
        return f"engine.device: the installed vLLM is built for {built}, not for {config.device!r}; {INSTALL}"
    if vllm.build == "cuda" and workplace.gpus < config.tensor_parallel:
        return (
            f"engine.kind: the installed vLLM is built for GPUs, and a worker has {workplace.gpus:g} of the "
            f"{config.tensor_parallel} that it needs; set executor.gpus_per_worker"
        )
    from evomerge.fitness.vllm.shape import read_shape

    name = read_shape(folder, trust_remote_code=config.trust_remote_code).architecture
    if name not in architectures(vllm.folder):
        return f"engine.kind: vLLM {vllm.version} does not implement {name}; choose other models"
    return None


def _check_options(config: EngineConfig, vllm: Installed, folder: Path) -> None:
    from evomerge.fitness.vllm.options import check_dtype, check_engine_args, check_shape
    from evomerge.fitness.vllm.shape import read_shape

    shape = read_shape(folder, trust_remote_code=config.trust_remote_code)
    check_engine_args(config, vllm)
    check_shape(config, shape)
    check_dtype(config, shape, vllm.build)
