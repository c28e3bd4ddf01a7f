"""Where scoring runs: in this process, or on Ray actors over a cluster."""

from collections.abc import Sequence
from pathlib import Path

from evomerge.cluster.config import ExecutorConfig
from evomerge.cluster.inline import InlineExecutor
from evomerge.cluster.ray_executor import RayExecutor
from evomerge.cluster.types import Completed, Event, Executor, Failed, Job, Retried, ScorerFactory

__all__ = [
    "Completed",
    "Event",
    "Executor",
    "ExecutorConfig",
    "Failed",
    "InlineExecutor",
    "Job",
    "RayExecutor",
    "Retried",
    "ScorerFactory",
    "create_executor",
]


def create_executor(config: ExecutorConfig, factory: ScorerFactory, visible: Sequence[Path] = ()) -> Executor:
    """Return the executor that a search file asks for.

    Args:
        config: of the search file.
        factory: builds the scorer inside each worker.
        visible: files and folders that every machine of a cluster must see; their content does not change.

    Raises:
        ConfigError: when the Ray cluster that the file names does not answer.
        EvaluationError: when no local Ray cluster can be started.
    """
    if config.kind == "inline":
        return InlineExecutor(config, factory)
    return RayExecutor(config, factory, visible)
