"""What can be known before a search starts: sources, tasks, dimensions, engine, memory. No weights are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.run.card import declared_license
from evomerge.run.config import RunConfig
from evomerge.run.problem import NO_FOLDER, Problem, open_problem, open_search_sources, workplace

if TYPE_CHECKING:
    from evomerge.fitness import EngineChoice, EngineConfig
    from evomerge.merging import Sources

_PLACES = {"device": "each GPU", "pinned": "page-locked main memory", "mapped": "mapped files"}


def preflight(config: RunConfig) -> dict[str, Any]:
    """Open everything that a search needs and return the facts, as `check --json` prints them.

    Raises:
        EvomergeError: the first thing that would stop the search.
    """
    from evomerge.checkpoints import resolve_model

    problem = open_problem(config, check_weights=True)
    opened = open_search_sources(config)
    sources = {}
    for alias, source in config.sources.items():
        model = opened.models[alias]
        local = resolve_model(source.model, source.revision, NO_FOLDER) if isinstance(source.model, str) else None
        sources[alias] = {
            "model": source.model if isinstance(source.model, str) else "a nested recipe",
            "layers": problem.infos[alias].num_layers,
            "parameters": sum(model.info(name).num_elements for name in model.names()),
            "license": None if local is None else declared_license(local),
            "content_hash": problem.infos[alias].content_hash,
        }
    return {
        "name": config.name,
        "sources": sources,
        "dimensions": len(problem.space.dimensions),
        "objectives": list(problem.objectives.names),
        "constraints": [constraint.text for constraint in problem.objectives.constraints],
        "tasks": list(problem.suite.task_names),
        "engine": _engine_facts(problem.engine, problem, opened) if problem.engine else None,
    }


def _engine_facts(engine: EngineChoice, problem: Problem, sources: Sources) -> dict[str, Any]:
    """Return which engine a search runs on and why, where it keeps the sources, and one worker's peak memory."""
    facts: dict[str, Any] = {"kind": engine.kind, "reason": engine.reason}
    if not workplace(problem.config).is_here:
        return facts  # nothing is known of the workers' machines
    if engine.kind == "transformers":
        return facts | _transformers_memory(problem.config.engine, sources)
    from evomerge.fitness.vllm.memory import plan_worker

    plan = plan_worker(sources, problem.config.engine, problem.suite.config.batch_size)
    place = "main memory" if plan.where == "device" and not plan.device_bytes else _PLACES[plan.where]
    return facts | {
        "sources": f"{place}: {plan.reason}",
        "gpu_bytes": plan.device_bytes,
        "host_bytes": plan.host_bytes,
    }


def _transformers_memory(config: EngineConfig, sources: Sources) -> dict[str, Any]:
    """Return what the transformers engine takes: it keeps every source in main memory, as float32."""
    import torch

    from evomerge.fitness.vllm.memory import sizes_of
    from evomerge.fitness.vllm.residency import PROCESS_BYTES

    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    sizes = sizes_of(sources, config, kv_cache=0, itemsize=4)
    served = sizes.model + sizes.merging
    return {
        "sources": "main memory, as float32",
        "gpu_bytes": served if on_gpu else 0,
        "host_bytes": PROCESS_BYTES + sizes.sources + (0 if on_gpu else served),
    }
