"""What can be known before a search starts: sources, tasks, dimensions. No weights are kept in memory."""

from __future__ import annotations

from typing import Any

from evomerge.run.card import declared_license
from evomerge.run.config import RunConfig
from evomerge.run.problem import NO_FOLDER, open_problem, open_search_sources


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
    }
