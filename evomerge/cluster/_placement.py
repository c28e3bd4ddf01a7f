"""What a worker asks of a node, and whether any node has it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from evomerge.cluster._nodes import Node
from evomerge.cluster.config import ExecutorConfig


def worker_options(config: ExecutorConfig, *, own_cluster: bool) -> dict[str, Any]:
    """Return how Ray is to place and run a worker. An actor never spans nodes, so its GPUs are of one machine.

    Args:
        config: what a worker needs.
        own_cluster: the cluster was started for this run alone; how many workers there are is then said by their
            number, and not by the machine's CPUs.
    """
    return {
        "num_cpus": 0 if own_cluster else config.cpus_per_worker,
        "num_gpus": config.gpus_per_worker,
        # Whole GPUs spread workers by themselves; without them Ray would fill one node after the other.
        "scheduling_strategy": "DEFAULT" if config.gpus_per_worker else "SPREAD",
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 1,
        "runtime_env": {"env_vars": worker_environment(config)},
    }


def worker_environment(config: ExecutorConfig) -> dict[str, str]:
    """Return the environment variables of a worker process."""
    variables = {
        # Without it every worker starts as many threads as the machine has cores.
        "OMP_NUM_THREADS": str(max(1, math.floor(config.cpus_per_worker))),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.gpus_per_worker == 0:
        # Ray hides no GPU from a worker that asked for none (ray#54868).
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def misfit(config: ExecutorConfig, nodes: Iterable[Node], *, own_cluster: bool) -> str | None:
    """Return what no node has, and what to do; None where a worker fits on some node, when it is free."""
    nodes, cpus = list(nodes), 0.0 if own_cluster else config.cpus_per_worker
    if not nodes or any(node.cpus >= cpus and node.gpus >= config.gpus_per_worker for node in nodes):
        return None
    gpus = max(node.gpus for node in nodes)
    if gpus < config.gpus_per_worker:
        found = f"the largest has {gpus:g}" if gpus else "there is none at all"
        return (
            f"no node has the {config.gpus_per_worker:g} GPUs of a worker ({found}); add such a node, or lower "
            "executor.gpus_per_worker"
        )
    return (
        f"no node has the {config.cpus_per_worker:g} CPUs and {config.gpus_per_worker:g} GPUs of a worker; add such "
        "a node, or lower executor.cpus_per_worker"
    )
