"""Suite files: which lm-eval tasks are scored, and what each of them measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.documents import did_you_mean, read_yaml
from evomerge.errors import ConfigError, EvaluationError, EvomergeError
from evomerge.fitness.config import FitnessConfig, SuiteConfig, TaskConfig
from evomerge.fitness.objectives import RESPONSE_TOKENS, Objectives

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

LOG_LIKELIHOOD = "log_likelihood"
"""Per-sample metric of (rolling) likelihood tasks: the log-likelihood of the document, in nats."""


@dataclass(frozen=True)
class Suite:
    """A suite file, read and checked; tasks are loaded on demand."""

    path: Path
    config: SuiteConfig
    include: Path | None
    """Folder of task YAML, absolute."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks (or groups of tasks) of the suite, in order."""
        return tuple(task.task for task in self.config.tasks)

    @cached_property
    def manager(self) -> TaskManager:
        """lm-eval's index of the tasks; its own ones are indexed only where needed, for that takes seconds.

        Raises:
            ConfigError: for a task that does not exist, with the nearest name.
        """
        from evomerge.fitness._lm_eval import task_manager

        manager = task_manager(self.include, defaults=False)
        if any(name not in manager.task_index for name in self.task_names):
            local = list(manager.task_index)
            manager = task_manager(self.include, defaults=True)
            for name in self.task_names:
                if name not in manager.task_index:
                    hint = did_you_mean(name, local) if local else ""
                    if not hint.startswith("; did"):
                        near = did_you_mean(name, manager.task_index)
                        hint = near if near.startswith("; did") else hint
                    raise ConfigError(f"{self.path}: no task {name!r} here or in lm-eval{hint}")
        return manager

    def metrics(self) -> dict[str, tuple[str, ...] | None]:
        """Return each task's per-sample metrics, by name, read from its file alone (no data is loaded).

        None stands for a task whose metrics are known only once it runs (one written in Python).

        Raises:
            ConfigError: for a task that does not exist.
        """
        return {name: _entry_metrics(self.manager, name) for name in self.task_names}

    def load_tasks(self, task: TaskConfig) -> dict[str, Task]:
        """Load one entry of the suite with its data: a task, or every task of a group.

        Returns:
            lm-eval name to a new task object, with the suite's overrides applied.

        Raises:
            ConfigError: when the task or its data cannot be loaded, or refuses an override.
            EvaluationError: when its data cannot be fetched now.
        """
        from evomerge.fitness._lm_eval import FEWSHOT_SEED, quiet, seeded

        try:
            with quiet(), seeded():
                loaded: dict[str, Task] = self.manager.load([task.task])["tasks"]
        except EvomergeError:
            raise
        except (ConnectionError, TimeoutError) as error:
            raise EvaluationError(f"task {task.task!r}: its data cannot be fetched now ({error})") from error
        except Exception as error:
            raise ConfigError(f"task {task.task!r} cannot be loaded: {_one_line(error)}") from error
        for name, item in loaded.items():
            self._check(name, item)
            _override(name, item, task)
            item.set_fewshot_seed(seed=FEWSHOT_SEED)
        return loaded

    def _check(self, name: str, item: Task) -> None:
        if getattr(item, "UNSAFE_CODE", False):
            raise ConfigError(f"task {name!r} runs code that a model wrote, which evomerge never does; leave it out")
        if getattr(item, "MULTIMODAL", False):
            raise ConfigError(f"task {name!r} needs images or sound; only tasks over text are scored")


def load_suite(path: Path) -> Suite:
    """Read a suite file.

    Raises:
        ConfigError: when it is missing, has unknown keys, names a task twice, or its include folder is
            missing.
    """
    document = read_yaml(path)
    config = document.parse(SuiteConfig)
    names = [task.task for task in config.tasks]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise document.error(("tasks", index, "task"), f"the task {name!r} stands twice")
    include = None
    if config.include is not None:
        include = (path.parent / config.include).resolve()
        if not include.is_dir():
            raise document.error(("include",), f"no folder {config.include!r} beside the suite file")
    return Suite(path=path.resolve(), config=config, include=include)


def check_fitness(config: FitnessConfig, suite: Suite) -> Objectives:
    """Check everything about the fitness that can be known before a model or a document is loaded.

    Returns:
        The parsed objectives and constraints.

    Raises:
        ConfigError: for an expression that is not arithmetic, a task that does not exist, or a name that is
            no metric.
    """
    objectives = Objectives.parse(config)
    objectives.check(suite.metrics())
    return objectives


def metric_names(metrics: list[str], filters: list[str]) -> tuple[str, ...]:
    """Return how metrics are called: bare with one filter, followed by the filter's name with several."""
    if len(filters) <= 1:
        return tuple(metrics)
    return tuple(f"{metric}.{name}" for metric in metrics for name in filters)


def _override(name: str, item: Task, config: TaskConfig) -> None:
    """Apply the suite's overrides as `lm_eval.simple_evaluate` does."""
    own = item.get_config("num_fewshot")
    if config.num_fewshot is None:
        item.set_config(key="num_fewshot", value=own or 0)
    elif own == 0 and config.num_fewshot > 0:
        raise ConfigError(
            f"task {name!r} fixes num_fewshot at 0, which lm-eval never overrides; leave num_fewshot out of the suite"
        )
    else:
        item.set_config(key="num_fewshot", value=config.num_fewshot)
    if config.generation:
        if item.get_config("output_type") != "generate_until":
            raise ConfigError(f"task {name!r} generates nothing; leave `generation` out of the suite")
        item.set_config(key="generation_kwargs", value=dict(config.generation), update=True)


def _entry_metrics(manager: TaskManager, name: str) -> tuple[str, ...] | None:
    """Return the metrics of a task, or those that all tasks of a group have; None: not known yet."""
    from lm_eval.tasks._index import Kind

    entry = manager.task_index.get(name)
    if entry is None or entry.kind is Kind.PY_TASK:
        return None
    if entry.kind is Kind.TAG:
        return _common([_entry_metrics(manager, member) for member in sorted(entry.tags)])
    config: Mapping[str, Any] = entry.cfg or {}
    if entry.kind is not Kind.GROUP:
        return _config_metrics(config)
    members = config.get("task")
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        return None
    return _common([_entry_metrics(manager, member) for member in members])


def _common(parts: list[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or not known:
        return None
    return tuple(name for name in known[0] if all(name in part for part in known))


def _config_metrics(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    import lm_eval.api.metrics  # noqa: F401  fills the registries
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, get_metric_aggregation

    kind = config.get("output_type", "generate_until")
    listed = config.get("metric_list")
    if listed is None:
        listed = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY.get(kind, ())]
    metrics: list[str] = []
    for item in listed:
        name = str(item.get("metric"))
        if "/" in name:  # a function beside the task: what it returns is known only once it runs
            return None
        aggregation = item.get("aggregation")
        if aggregation is None:
            aggregation = getattr(get_metric_aggregation(name), "__name__", None)
        if aggregation == "mean":
            metrics.append(name)
    filters = [str(item.get("name")) for item in config.get("filter_list") or ()]
    names = list(metric_names(metrics, filters))
    if kind == "generate_until":
        names.append(RESPONSE_TOKENS)
    elif kind in ("loglikelihood", "loglikelihood_rolling"):
        names.append(LOG_LIKELIHOOD)
    return tuple(names)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
