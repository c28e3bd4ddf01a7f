"""What can be known before a weight is read: of a search, a recipe or a mergekit file, from settings and headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.documents import read_yaml
from evomerge.errors import ConfigError, EvomergeError
from evomerge.recipe import Recipe
from evomerge.recipe.mergekit import is_genome, is_mergekit
from evomerge.run.config import RunConfig
from evomerge.run.estimates import estimate
from evomerge.run.flight import idle_workers
from evomerge.run.load import load_config, located
from evomerge.run.problem import NO_FOLDER, Problem, all_sources, open_problem, workplace
from evomerge.run.source_facts import differences, source_facts
from evomerge.spaces import Grams

if TYPE_CHECKING:
    from evomerge.fitness import EngineChoice, EngineConfig
    from evomerge.merging import Headers, Sources

_PLACES = {"device": "each GPU", "pinned": "page-locked main memory", "mapped": "mapped files"}


def check_file(path: Path, overrides: Sequence[str] = (), *, weights: bool = False) -> dict[str, Any]:
    """Return the facts of a file, as `check --json` prints them; no model is built and nothing is written.

    `kind` is search, recipe or mergekit. `problems` holds one sentence for everything that would stop the work, `notes`
    one for everything worth knowing; where there are problems, what depends on the sources is None.

    Args:
        path: a search file, a recipe, or a mergekit configuration.
        overrides: `a.b=value` texts, for a search file.
        weights: also read every weight, downloading it if need be, to refuse NaN and infinity.

    Raises:
        EvomergeError: the first thing that is wrong in the file itself.
    """
    data = read_yaml(path).data
    if is_genome(data):
        raise ConfigError(f"{path}: a file of mergekit-evolve; make a search file of it first, with: evomerge import")
    if isinstance(data, Mapping) and ("recipe" in data or is_mergekit(data)):
        return _check_recipe(path, weights=weights)
    config = load_config(path, overrides)
    with located(path):
        return preflight(config, weights=weights)


def preflight(config: RunConfig, *, weights: bool = False) -> dict[str, Any]:
    """Return the facts of a search, as `check --json` prints them.

    Args:
        config: the search file.
        weights: also read every weight.

    Raises:
        EvomergeError: the first thing that would stop the search, but for problems of sources, which are among the
            facts.
    """
    from evomerge.merging import plan, read_headers

    recipe = all_sources(config, blend={"method": "linear"})
    headers = read_headers(recipe, NO_FOLDER, any_depth=config.space.kind == "data_flow")
    facts = {"kind": "search", "name": config.name, **_of_sources(recipe, headers)}
    if headers.sources is None:
        return facts
    problem = open_problem(config, grams=_made_up_grams(config), headers=headers.sources)
    if weights:
        open_problem(config, check_weights=True)
    facts |= {
        "dimensions": len(problem.space.dimensions),
        "objectives": list(problem.objectives.names),
        "constraints": [constraint.text for constraint in problem.objectives.constraints],
        "tasks": list(problem.suite.task_names),
        "engine": _engine_facts(problem.engine, problem, headers.sources) if problem.engine else None,
    }
    idle = idle_workers(config, problem.searcher())
    facts["notes"] += [idle] if idle else []
    layers = {info.num_layers for info in problem.infos.values()}
    if len(layers) > 1:
        return facts  # sources of different depth have no merge that stands for all
    return facts | _with_downloads(facts, estimate(plan(recipe, headers.sources), Path.cwd()))


def _check_recipe(path: Path, *, weights: bool) -> dict[str, Any]:
    from evomerge.merging import open_source_headers, plan, read_headers, read_recipe_file

    file = read_recipe_file(path, open_source_headers)
    recipe, base_dir = file.recipe, path.resolve().parent
    headers = read_headers(recipe, base_dir)
    kind = "mergekit" if is_mergekit(read_yaml(path).data) else "recipe"
    facts = {"kind": kind, "name": path.stem, **_of_sources(recipe, headers)}
    facts["notes"] = [*file.notes, *facts["notes"]]
    if headers.sources is None:
        return facts
    try:
        merge = plan(recipe, headers.sources)
        config = merge.config()
    except EvomergeError as error:
        return facts | {"problems": [str(error)]}
    if weights:
        _read_weights(recipe, base_dir)
    dtype = {str(planned.info.dtype).removeprefix("torch.") for planned in merge.tensors}
    facts["merge"] = {
        "architecture": config.get("model_type"),
        "layers": len(merge.route.hops),
        "tensors": len(merge.tensors),
        "parameters": sum(planned.info.num_elements for planned in merge.tensors),
        "dtype": ", ".join(sorted(dtype)),
        "bytes": merge.num_bytes,
    }
    return facts | _with_downloads(facts, estimate(merge, Path.cwd()))


def _of_sources(recipe: Recipe, headers: Headers) -> dict[str, Any]:
    facts = {alias: source_facts(recipe.sources[alias], model) for alias, model in headers.models.items()}
    notes = differences(facts, recipe) if len(facts) == len(recipe.sources) else []
    return {"sources": facts, "problems": list(headers.problems), "notes": notes}


def _with_downloads(facts: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Add what has to be downloaded first, and say where the disk is too small."""
    rows = facts["sources"].values()
    download = sum({(row["model"], row["revision"]): row["download_bytes"] for row in rows}.values())
    disk = found["disk"] | {"download": download}
    if disk["needed"] + download > disk["free"]:
        facts["notes"].append(
            f"the disk has {disk['free']:,} bytes free, and {disk['needed'] + download:,} are needed for a merged "
            f"model and downloads; free some"
        )
    return found | {"disk": disk}


def _read_weights(recipe: Recipe, base_dir: Path) -> None:
    from evomerge.checkpoints import check_finite, parameter_names
    from evomerge.merging import open_sources

    for alias, model in open_sources(recipe, base_dir).models.items():
        check_finite(model, alias, parameter_names(model))


def _made_up_grams(config: RunConfig) -> Grams | None:
    """Return Gram matrices in place of those that only the weights can give; the shape of the space needs some."""
    if config.space.kind != "piecewise":
        return None
    import numpy as np

    from evomerge.spaces.piecewise import WHOLE

    names = (WHOLE,) if isinstance(config.space.chromosomes, str) else config.space.chromosomes
    rows = list(np.eye(len(config.sources), dtype=np.float32))
    return Grams.of_vectors(tuple(config.sources), dict.fromkeys(names, rows))


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
