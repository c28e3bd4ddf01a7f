"""From a recipe to a checkpoint folder."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.checkpoints import (
    DEFAULT_SHARD_BYTES,
    CheckpointWriter,
    check_free,
    copy_assets,
    local_folder,
)
from evomerge.documents import dump_yaml
from evomerge.merging.materialise import materialise
from evomerge.merging.mergekit import read_recipe_file
from evomerge.merging.opening import assets_source, open_sources
from evomerge.merging.plan import plan
from evomerge.merging.progress import MergeProgress
from evomerge.recipe import Recipe, identity


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build wrote."""

    out: Path
    recipe_id: str
    """Identity (SHA-256) of the recipe over its sources."""
    num_tensors: int
    num_parameters: int
    num_bytes: int
    """Size of the weights."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What is to be said about a mergekit file: differences from mergekit, and what was left out."""


def build(
    recipe: Recipe,
    out: Path,
    *,
    base_dir: Path,
    device: str = "cpu",
    progress: MergeProgress | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    card: str | None = None,
) -> BuildReport:
    """Build the model of a recipe as a Hugging Face checkpoint folder.

    Weights stream through memory tensor by tensor. The folder appears as a whole when everything is written
    and synced; a failure leaves nothing behind. It also holds `recipe.yaml`, to build it again from.

    Args:
        recipe: what to build.
        out: the folder to make; it must not exist, or be empty.
        base_dir: where relative folders among the sources start.
        device: where the arithmetic is done.
        progress: hears how it goes on.
        max_shard_bytes: largest size of a weights file, > 0.
        card: text of `README.md`, the model card.

    Raises:
        ConfigError: when `out` is taken.
        SourceError: a source that cannot be read, does not fit the others, or is not finite.
        NotBuiltError: a recipe that this version cannot build.
        InfeasibleError: when the merged weights are not finite.
        StorageError: when the disk refuses, for instance because it is full.
    """
    begun = time.monotonic()
    check_free(out)
    sources = open_sources(recipe, base_dir)
    merge_plan = plan(recipe, sources)
    recipe_id = identity(recipe, sources.infos)
    config = merge_plan.config()
    texts = {"recipe.yaml": portable_recipe(recipe, base_dir, out, recipe_id)}
    if card is not None:
        texts["README.md"] = card

    def add_files(folder: Path) -> None:
        copy_assets(folder, source=assets_source(recipe, sources).folder, config=config)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    if progress is not None:
        progress.start(f"merging {out.name}", merge_plan.num_bytes)
    try:
        with CheckpointWriter(out, merge_plan.infos, max_shard_bytes=max_shard_bytes) as writer:
            writer.add(add_files)
            for name, tensor in materialise(merge_plan, device):
                writer.write(name, tensor)
                if progress is not None:
                    progress.advance(tensor.nbytes)
    finally:
        if progress is not None:
            progress.finish()
    return BuildReport(
        out=out,
        recipe_id=recipe_id,
        num_tensors=len(merge_plan.tensors),
        num_parameters=sum(planned.info.num_elements for planned in merge_plan.tensors),
        num_bytes=merge_plan.num_bytes,
        seconds=time.monotonic() - begun,
    )


def merge(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: MergeProgress | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    card: str | None = None,
) -> BuildReport:
    """Build the model of a recipe, recipe file or mergekit file; the arguments and errors are those of `build`.

    Args:
        recipe: a recipe, or the path of its YAML file, native or mergekit's.
        out: the folder to make.
        base_dir: where relative folders start; None: the recipe file's folder, or the working folder.
        device: where the arithmetic is done.
        progress: hears how it goes on, for instance `terminal_progress()`.
        max_shard_bytes: largest size of a weights file, > 0.
        card: text of `README.md`, the model card.

    Raises:
        RecipeError: when the recipe file is wrong.
    """
    notes: tuple[str, ...] = ()
    if not isinstance(recipe, Recipe):
        path = Path(recipe)
        base_dir = path.resolve().parent if base_dir is None else base_dir
        file = read_recipe_file(path)
        recipe, notes = file.recipe, file.notes
    report = build(
        recipe,
        Path(out),
        base_dir=Path.cwd() if base_dir is None else Path(base_dir),
        device=device,
        progress=progress,
        max_shard_bytes=max_shard_bytes,
        card=card,
    )
    return replace(report, notes=notes)


def portable_recipe(recipe: Recipe, base_dir: Path, out: Path, recipe_id: str) -> str:
    """Return a recipe as YAML that means the same when it is read from the folder `out`.

    Local folders are named relative to it; hub ids and embedded models stay.
    """
    data = _rebased(recipe.to_mapping(), base_dir, out)
    return f"# Identity {recipe_id}\n{dump_yaml(data)}"


def _rebased(data: dict[str, Any], base_dir: Path, out: Path) -> dict[str, Any]:
    sources = {}
    for alias, source in data["sources"].items():
        model, adapter = source["model"], source.get("adapter")
        moved = _rebased(model, base_dir, out) if isinstance(model, dict) else relative_name(model, base_dir, out)
        sources[alias] = {**source, "model": moved}
        if adapter is not None:
            sources[alias]["adapter"] = relative_name(adapter, base_dir, out)
        if "statistics" in source:
            sources[alias]["statistics"] = relative_name(source["statistics"], base_dir, out)
    return {**data, "sources": sources}


def relative_name(name: str, base_dir: Path, out: Path) -> str:
    """Return how a model or adapter is named from the folder `out`; hub ids and embedded models stay."""
    folder = None if name.startswith("zoo:") else local_folder(name, base_dir)
    return name if folder is None else Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()
