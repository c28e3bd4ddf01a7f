"""The sources of a search in a worker: opened once, and kept where the residency plan says."""

from __future__ import annotations

from pathlib import Path

import torch

from evomerge.fitness.vllm.residency import Where
from evomerge.merging import Sources, open_sources
from evomerge.recipe import Recipe


def open_kept(
    recipe: Recipe,
    base_dir: Path,
    where: Where,
    device: torch.device,
    *,
    known: Sources | None = None,
    current: Sources | None = None,
) -> Sources:
    """Open the sources of a recipe, or return those at hand where they are the same.

    Args:
        recipe: what to open the sources of.
        base_dir: where relative folders start.
        where: where their weights are kept.
        device: of the worker.
        known: sources whose weights are not read again.
        current: what to return where it serves.

    Raises:
        SourceError: when a source cannot be read or does not fit the others, or one that is kept is not finite.
        NotBuiltError: for a recipe that this version cannot build.
    """
    if current is not None and serves(current, recipe):
        return current
    sources = open_sources(recipe, base_dir, any_depth=True, like=known)
    if where != "mapped":
        sources.keep(str(device) if where == "device" else "cpu", pinned=where == "pinned")
    return sources


def serves(sources: Sources, recipe: Recipe) -> bool:
    """Tell whether a recipe is one over opened sources, with the same reference and vocabulary."""
    reference = recipe.base if recipe.base is not None else next(iter(recipe.sources))
    same = all(sources.configs.get(alias) == config for alias, config in recipe.sources.items())
    return same and reference == sources.reference and sources.speak(recipe)
