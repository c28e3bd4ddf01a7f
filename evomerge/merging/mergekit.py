"""Recipe files of either kind: native ones, and those of mergekit, translated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.checkpoints import Layout, ModelSource, is_buffer, local_folder
from evomerge.documents import read_yaml
from evomerge.errors import ConfigError, RecipeError
from evomerge.merging.opening import open_source
from evomerge.recipe import Module, Recipe, SourceConfig, read_recipe
from evomerge.recipe.mergekit import (
    ImportedSearch,
    ModelFacts,
    import_genome,
    import_mergekit,
    is_mergekit,
    needs_depth,
)


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe file, read."""

    recipe: Recipe
    notes: tuple[str, ...] = ()
    """Of a mergekit file: where the result differs from mergekit's, and what was left out."""


def read_recipe_file(path: Path, opener: Callable[[SourceConfig, Path], ModelSource] = open_source) -> RecipeFile:
    """Read a native recipe or a mergekit file.

    Relative folders in a mergekit file start in the working folder, as in mergekit, or else beside the file; the
    recipe names them in full. The headers of its sources are read where the translation depends on them.

    Args:
        path: the file.
        opener: opens a source, of which headers are enough.

    Raises:
        RecipeError: when it is missing, unreadable or wrong, with the line and key path of the first fault.
        SourceError: when a source of a mergekit file cannot be read.
    """
    try:
        document = read_yaml(path)
    except ConfigError as error:
        raise RecipeError(str(error)) from None
    if not is_mergekit(document.data):
        return RecipeFile(read_recipe(path))
    beside = path.resolve().parent
    imported = import_mergekit(document, lambda source: facts_of(opener(_located(source, beside), beside)))
    sources = {alias: _located(source, beside) for alias, source in imported.recipe.sources.items()}
    return RecipeFile(imported.recipe.model_copy(update={"sources": sources}), imported.notes)


def read_search(path: Path, suite: str) -> ImportedSearch:
    """Read a configuration of mergekit-evolve as a search file; folders as in `read_recipe_file`.

    Args:
        path: the file.
        suite: how the search file is to name its suite.

    Raises:
        ConfigError: for what is not understood, with line and key path.
        SourceError: when the depth of the models matters and cannot be read.
    """
    document, beside = read_yaml(path), path.resolve().parent
    model, depth = needs_depth(document), None
    if model is not None:
        depth = open_source(_located(SourceConfig(model=model.path, revision=model.revision), beside), beside)
    found = import_genome(document, None if depth is None else depth.layout.num_layers, suite)
    sources = {alias: _located(source, beside) for alias, source in found.sources.items()}
    written = {alias: source.model_dump(exclude_defaults=True) for alias, source in sources.items()}
    return replace(found, search={**found.search, "sources": written}, sources=sources)


def _located(source: SourceConfig, beside: Path) -> SourceConfig:
    """Return a source with its local folders named in full."""
    found = {key: getattr(source, key) for key in ("model", "adapter")}
    for key, name in found.items():
        for folder in (Path.cwd(), beside):
            place = None if name is None or name.startswith("zoo:") else local_folder(name, folder)
            if place is not None and place.is_dir():
                found[key] = str(place.resolve())
                break
    return source.model_copy(update=found)


def facts_of(model: ModelSource) -> ModelFacts:
    """Return what a translation has to know of a model."""
    layout: Layout = model.layout
    layers = []
    for layer in range(layout.num_layers):
        names = {part: layout.full_name(layer, part) for part in layout.parts(layer)}
        layers.append({part: _module(layout, name) for part, name in names.items() if not _is_buffer(model, name)})
    outside = [name for name in model.names() if layout.place(name).layer is None and not _is_buffer(model, name)]
    types: Counter[str] = Counter()
    for name in model.names():
        if not _is_buffer(model, name):
            types[str(model.info(name).dtype).removeprefix("torch.")] += model.info(name).num_elements
    return ModelFacts(
        stack=layout.stack or "",
        layers=tuple(layers),
        outside={name: "head" if layout.place(name).module == "head" else "embeddings" for name in outside},
        dtype=types.most_common(1)[0][0],
    )


def _is_buffer(model: ModelSource, name: str) -> bool:
    return is_buffer(name, model.info(name))


def _module(layout: Layout, name: str) -> Module:
    module = layout.place(name).module
    if module == "attention":
        return "attention"
    return "mlp" if module == "mlp" else "other"
