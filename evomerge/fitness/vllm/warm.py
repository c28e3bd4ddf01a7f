"""A vLLM engine that can be replaced by another one while others hold on to it."""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from evomerge import errors
from evomerge.errors import EvaluationError, EvomergeError, InfeasibleError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.startup import explain_running, starting

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams, TokensPrompt
    from vllm.v1.engine.llm_engine import LLMEngine

EXTENSION = "evomerge.fitness.vllm.extension.MergeExtension"


class WarmLLM:
    """One `vllm.LLM` after the other, behind one object; one at a time in a process.

    vLLM keeps its process groups once a process and destroys them with whichever engine ends first, so a start stops
    the engine of another object; that one needs a start of its own before it is used again.
    """

    _running_here: ClassVar[WarmLLM | None] = None
    """The one whose engine runs in this process."""

    def __init__(self, config: EngineConfig) -> None:
        """Hold no engine yet."""
        self._config = config
        self._llm: LLM | None = None
        self.version: str | None = None
        """Of the weights that requests are to be answered with; None while there are none."""

    @property
    def runs(self) -> bool:
        """Whether there is an engine."""
        return self._llm is not None

    @property
    def llm_engine(self) -> LLMEngine:
        """The engine object within vLLM's `LLM`."""
        return self._running().llm_engine

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens."""
        return int(self.llm_engine.model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self.llm_engine.model_config.get_vocab_size())

    @property
    def block_size(self) -> int:
        """Tokens a block of the key-value cache."""
        return int(self.llm_engine.vllm_config.cache_config.block_size)

    @property
    def is_on_cpu(self) -> bool:
        """Whether models run on the CPU."""
        return bool(self.llm_engine.vllm_config.device_config.device_type == "cpu")

    def start(self, arguments: Mapping[str, Any]) -> None:
        """Stop the engine that runs in this process, and start one.

        Args:
            arguments: of `vllm.LLM`.

        Raises:
            ConfigError, EvaluationError: when it does not start.
        """
        if WarmLLM._running_here is not None:
            WarmLLM._running_here.stop()
        with starting(self._config), undisturbed():
            from vllm import LLM

            self._llm = LLM(**arguments, worker_extension_cls=EXTENSION)
        WarmLLM._running_here = self

    def stop(self) -> None:
        """Stop the engine, if one runs, and free what it held."""
        self.version = None
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = WarmLLM._running_here = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(
        self, prompts: Sequence[TokensPrompt], params: Sequence[SamplingParams], *, use_tqdm: bool = False
    ) -> list[RequestOutput]:
        """Answer requests with the loaded candidate.

        Raises:
            EvaluationError: when none is loaded.
        """
        if self.version is None:
            raise EvaluationError("no candidate is loaded; the one before was refused")
        return self.ask(prompts, params, use_tqdm=use_tqdm)

    def ask(
        self, prompts: Sequence[TokensPrompt], params: Sequence[SamplingParams], *, use_tqdm: bool = False
    ) -> list[RequestOutput]:
        """Answer requests with whatever weights there are.

        Raises:
            EvaluationError: when vLLM fails at it, for instance for want of memory; it is stopped then.
        """
        try:
            return list(self._running().generate(list(prompts), list(params), use_tqdm=use_tqdm))
        except EvomergeError:
            raise
        except Exception as error:
            self.stop()
            raise explain_running(f"answering failed with {_told(error)}", self._config) from error

    def order(self, method: str, *arguments: object) -> list[dict[str, Any]]:
        """Have every worker do something that `MergeExtension` can.

        Returns:
            What each of them answers, by rank.

        Raises:
            InfeasibleError, SourceError and so on: the error that they agree on.
            EvaluationError: when they do not, or one of them does not answer.
        """
        try:
            answers: list[dict[str, Any]] = self._running().collective_rpc(method, args=arguments)
        except EvomergeError:
            raise
        except Exception as error:
            raise explain_running(f"a worker of vLLM failed with {_told(error)}", self._config) from error
        failed = [answer for answer in answers if "error" in answer]
        if failed:
            kinds = {answer["error"] for answer in failed}
            agreed = len(kinds) == 1 and (len(failed) == len(answers) or kinds == {InfeasibleError.__name__})
            kind = getattr(errors, failed[0]["error"]) if agreed else EvaluationError
            if kind is EvaluationError:
                raise explain_running(failed[0]["text"], self._config)
            raise kind(failed[0]["text"])
        return answers

    def label(self, version: str) -> None:
        """Have vLLM write a version on its outputs from now on."""
        self.llm_engine.set_weight_version(version)

    def drop_cache(self) -> None:
        """Empty the prefix cache.

        Raises:
            EvaluationError: when vLLM says that it did not.
        """
        if not self._running().reset_prefix_cache():
            raise EvaluationError("vLLM did not empty its prefix cache, as unfinished requests hold on to it")

    def _running(self) -> LLM:
        if self._llm is None:
            raise EvaluationError("vLLM has been stopped")
        return self._llm


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _VllmModules:
    """Stands for `sys` where vLLM looks for its kernels, on a CPU in every attribute of every module of the process.

    It asks all of them for their attributes, which not every object bears (Flask's proxies, for instance).
    """

    @property
    def modules(self) -> dict[str, ModuleType]:
        """Those of vLLM: the kernels are nowhere else."""
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep what is the whole process's from vLLM: random state, torch's threads, warnings as errors, modules."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    set_num_threads = torch.set_num_threads
    kernels = import_module("vllm.triton_utils.dispatcher")
    vars(kernels)["sys"] = _VllmModules()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            vars(kernels)["sys"] = sys
            torch.set_num_threads = set_num_threads
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
