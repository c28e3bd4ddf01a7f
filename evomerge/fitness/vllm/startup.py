"""Why vLLM does not start, in one sentence with what to do; and what a process must do before it can."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.errors import ConfigError, EvaluationError, EvomergeError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.vllm.installed import INSTALL, installed

_LONGEST = 240
"""Characters of vLLM's own words that are kept."""
_PR_SET_PDEATHSIG = 1

_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|less than (desired|requested)"
    r"|No available memory|KV cache is needed|larger than the (maximum|available)|bad_alloc|Increase.*gpu_memory_util",
    re.IGNORECASE,
)
_CAUSES = {
    r"operator torchvision::\w+ does not exist|torchvision.*(undefined symbol|libcud)|libtorchcodec": (
        "vLLM cannot be imported beside this torchvision, which was built for another torch; models of text need none: "
        "`pip uninstall torchvision torchaudio torchcodec`"
    ),
    r"undefined symbol|libcuda\w*\.so|libcudart|_C\.abi3|No module named 'vllm\._": (
        "the installed vLLM does not fit this torch or this machine's drivers ({words}); install both together again, "
        "or use `kind: transformers`"
    ),
    r"[Mm]odel architectures.*(not supported|failed)|[Cc]annot find model module|no vLLM implementation": (
        "engine.kind: vLLM does not support this model ({words}); use `kind: transformers`"
    ),
    r"max_model_len|max_position_embeddings|maximum (model|sequence) length": (
        "engine.max_length: vLLM refuses the context ({words}); lower it"
    ),
    r"divisible by tensor parallel|tensor_parallel_size|World size .* larger than": (
        "engine.tensor_parallel: vLLM refuses it ({words}); lower it"
    ),
    r"[Uu]nsupported CPU attention|[Bb]float16 is only supported|dtype.*not supported|not support.*dtype": (
        "engine.dtype: this device cannot run the model in it ({words}); use `dtype: float32`"
    ),
}
"""What vLLM, torch and the loader say, and what it means to the person who started the search."""


def prepare(config: EngineConfig) -> None:
    """Make this process ready for vLLM, before it is imported; variables that the user has set stay."""
    variables = {
        # The engine lives in this process: no child outlives it, and a swap costs no message.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM's own choice binds every engine of a machine to the same first core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the one token that is sampled and not used
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.threads is not None:
        variables["OMP_NUM_THREADS"] = str(config.threads)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    permit_amx()
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)


def permit_amx() -> bool:
    """Ask the system for this process's right to AMX instructions; tell whether they may be used or are not there.

    vLLM uses them in bfloat16 wherever the processor lists them and does not ask; the first one would end the process
    (SIGILL). Every process that runs a model must ask for itself, once.
    """
    import torch

    return not torch.cpu._is_amx_tile_supported() or bool(torch.cpu._init_amx())  # noqa: SLF001  vLLM reads it too


def enter_worker() -> None:
    """Do in a process that runs a part of a model what it must do for itself; a child of vLLM's ends with its parent.

    A parent that is killed has no time to stop its children, and they would keep the memory of their devices.
    """
    permit_amx()
    if sys.platform == "linux" and multiprocessing.parent_process() is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextmanager
def starting(config: EngineConfig) -> Iterator[None]:
    """Turn whatever vLLM raises while it is imported or started into one sentence.

    Raises:
        ConfigError: for what only another search file or another installation mends.
        EvaluationError: for too little memory, and for what is not known: another try may find it otherwise.
    """
    try:
        yield
    except EvomergeError:
        raise
    except (Exception, SystemExit) as error:
        raise explain(error, config) from error


def explain(error: BaseException, config: EngineConfig) -> EvomergeError:
    """Return what a failed start means, with what to do about it."""
    text = "\n".join(_texts(error))
    if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
        return ConfigError(f"engine.kind: vLLM is not installed; {INSTALL}, or use `kind: transformers`")
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return _too_little_memory(text, config)
    for pattern, sentence in _CAUSES.items():
        found = re.search(pattern, text)
        if found:
            return ConfigError(sentence.format(words=_words(text, found)))
    if config.engine_args and isinstance(error, (ValueError, TypeError)):
        named = ", ".join(config.engine_args)
        return ConfigError(f"engine.engine_args: vLLM refuses them ({_words(text, None)}); correct or remove {named}")
    if re.search(r"background process|[Ee]ngine ?[Cc]ore|^cancelled$", text, re.MULTILINE):
        return EvaluationError(
            f"one of vLLM's {config.tensor_parallel} processes did not start or died; the cause is in the worker's log "
            "(too little memory and a dtype that the device cannot run are the usual ones)"
        )
    return EvaluationError(f"vLLM did not start ({type(error).__name__}: {_words(text, None)})")


def explain_running(text: str, config: EngineConfig) -> EvaluationError:
    """Return what a failure of a running vLLM means.

    Args:
        text: what failed, with the exception's type and words.
        config: how vLLM was started.
    """
    if _MEMORY.search(text):
        return _too_little_memory(text, config)
    return EvaluationError(text)


def _too_little_memory(text: str, config: EngineConfig) -> EvaluationError:
    vllm = installed()
    on_gpu = vllm is not None and vllm.build == "cuda"
    knob = f"engine.gpu_memory (now {config.gpu_memory:g})" if on_gpu else "engine.kv_cache_gib"
    more = "too low for the model, or too high for what other programs leave: " if on_gpu else ""
    return EvaluationError(
        f"vLLM has too little memory ({_words(text, _MEMORY.search(text))}); change {knob}, {more}lower "
        "engine.max_length, use fewer workers on this machine, or raise engine.tensor_parallel"
    )


def _texts(error: BaseException) -> Iterator[str]:
    """Yield the texts of an exception and of what caused it, the innermost last."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield str(current)
        current = current.__cause__ or current.__context__


def _words(text: str, found: re.Match[str] | None) -> str:
    """Return the line of a text that says it, without pydantic's frame, shortened."""
    at = found.start() if found else 0
    line = text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0].strip() or text.strip().partition("\n")[0]
    if "validation error" in line:  # what is wrong stands in the lines below
        below = [part.strip() for part in text[at:].splitlines()[1:] if part.strip()]
        line = ": ".join(below[:2]) or line
    line = re.sub(r"\s*\[type=.*|Value error, |\. .*", "", line).rstrip(" .")
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
