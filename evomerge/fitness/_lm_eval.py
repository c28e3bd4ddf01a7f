"""Keeping lm-eval quiet and deterministic, and finding the data beside its task files.

Imported only where lm-eval is about to be used.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry

from evomerge.errors import ConfigError

PYTHON_SEED = 0
NUMPY_SEED = 1234
TORCH_SEED = 1234
FEWSHOT_SEED = 1234
"""The seeds that `lm_eval.simple_evaluate` and its command line set."""

_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
_PLAIN_BUILDERS = frozenset({"json", "csv", "parquet", "text", "arrow"})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's progress bars and everything below an error in its log."""
    import datasets  # type: ignore[import-untyped]
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")
    level = logger.level
    bars = datasets.utils.logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        logger.setLevel(logging.ERROR)
        stack.callback(logger.setLevel, level)
        if bars:
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        # lm-eval has no switch for the bars of request building, nor for those of rolling likelihoods.

        def silent(*args: Any, **options: Any) -> Any:
            return tqdm(*args, **{**options, "disable": True})

        for name in _WITH_BARS:
            module: Any = sys.modules.get(name)
            if module is not None:
                stack.callback(setattr, module, "tqdm", module.tqdm)
                module.tqdm = silent
        yield


@contextmanager
def seeded() -> Iterator[None]:
    """Give lm-eval the random state that its command line starts from; then restore the caller's.

    Some tasks shuffle with the global generators while they load, and sampled generation draws from torch's.
    """
    import torch

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(PYTHON_SEED)
        np.random.seed(NUMPY_SEED)  # noqa: NPY002  the generator that tasks use
        torch.manual_seed(TORCH_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Any:
    from lm_eval.utils import env

    return type(env).from_string(env, text)


@contextmanager
def compiled_templates() -> Iterator[None]:
    """Let lm-eval compile each prompt template once, not once a document: a third of a small model's scoring."""
    from lm_eval.utils import env

    env.from_string = _compiled
    try:
        yield
    finally:
        vars(env).pop("from_string", None)  # the class's own method shows again


class _Factory(TaskFactory):  # type: ignore[misc]  # lm-eval ships no types
    """Resolves a task's data files relative to its YAML file; lm-eval takes them relative to the caller."""

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        options = config.get("dataset_kwargs")
        if entry.yaml_path and isinstance(options, dict) and config.get("dataset_path") in _PLAIN_BUILDERS:
            folder = Path(entry.yaml_path).parent
            for key in ("data_files", "data_dir"):
                if key in options:
                    options[key] = _beside(options[key], folder, str(config.get("task")))
        return config


def _beside(value: Any, folder: Path, task: str) -> Any:
    if isinstance(value, dict):
        return {key: _beside(part, folder, task) for key, part in value.items()}
    if isinstance(value, list):
        return [_beside(part, folder, task) for part in value]
    if not isinstance(value, str) or "://" in value or Path(value).is_absolute():
        return value
    path = (folder / value).resolve()
    if "*" not in value and not path.exists():
        raise ConfigError(f"task {task!r}: no data file {value!r} in {folder}; paths are relative to the task's YAML")
    return str(path)


def task_manager(include: Path | None, *, defaults: bool) -> TaskManager:
    """Index task files.

    Args:
        include: folder of task YAML, or None.
        defaults: whether to index lm-eval's own tasks too (thousands of files: about ten seconds).
    """
    with quiet():
        manager = TaskManager(include_path=str(include) if include else None, include_defaults=defaults)
    manager._factory = _Factory(meta=manager.metadata)  # noqa: SLF001  there is no public way in
    return manager
