"""The sources of a recipe by their headers alone, and every way in which they do not fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints import (
    AdaptedModel,
    HeaderCheckpoint,
    ModelSource,
    StatisticFile,
    align,
    check_compatible,
    open_adapter_headers,
    open_headers,
)
from evomerge.checkpoints.statistics import KINDS
from evomerge.errors import EvomergeError, SourceError
from evomerge.merging.opening import NestedModel, reference_alias
from evomerge.merging.sources import Sources, vocabulary_rule
from evomerge.operators.metadata import StatisticKind
from evomerge.recipe import Recipe, SourceConfig


@dataclass(frozen=True, slots=True)
class Headers:
    """What was read of the sources of a recipe."""

    models: Mapping[str, ModelSource]
    """Alias -> the model as it is stored, for those that could be opened."""
    sources: Sources | None
    """All of them, ready for planning and for nothing else; None where there are problems."""
    problems: tuple[str, ...]
    """One sentence for each source that cannot be used, and for each that does not fit the reference."""


def read_headers(recipe: Recipe, base_dir: Path, *, any_depth: bool | None = None) -> Headers:
    """Open the sources of a recipe without their weights; nothing but headers and small files is downloaded.

    Args:
        recipe: what to open the sources of.
        base_dir: where relative folders start.
        any_depth: whether sources may differ in depth; None: if the recipe says which layers it takes.
    """
    models: dict[str, ModelSource] = {}
    problems: list[str] = []
    opened: dict[tuple[str, str | None], HeaderCheckpoint] = {}
    for alias, config in recipe.sources.items():
        try:
            models[alias] = open_source_headers(config, base_dir, alias, opened=opened)
        except EvomergeError as error:
            problems.append(str(error))
    if len(models) < len(recipe.sources):
        return Headers(models, None, tuple(problems))
    any_depth = recipe.layers is not None if any_depth is None else any_depth
    try:
        aligned = models if recipe.tokenizer is None else align(models, recipe.tokenizer, recipe.base)
        files = {alias: _statistics(config, base_dir) for alias, config in recipe.sources.items()}
    except EvomergeError as error:
        return Headers(models, None, (str(error),))
    problems = _misfits(aligned, reference_alias(recipe), same_tokenizer=recipe.tokenizer is None, any_depth=any_depth)
    if problems:
        return Headers(models, None, tuple(problems))
    rule = vocabulary_rule(recipe)
    sources = Sources(recipe.sources, aligned, reference_alias(recipe), files=files, vocabulary=rule)
    return Headers(models, sources, ())


def _misfits(models: Mapping[str, ModelSource], reference: str, *, same_tokenizer: bool, any_depth: bool) -> list[str]:
    problems = []
    for alias in models:
        pair = {name: models[name] for name in (reference, alias)}
        try:
            check_compatible(pair, reference, same_tokenizer=same_tokenizer, any_depth=any_depth)
        except SourceError as error:
            ours, theirs = (str(model.config.get("model_type")) for model in pair.values())
            problems.append(
                str(error)
                if ours == theirs or "tokenizers" in str(error)
                else f"sources {reference!r} and {alias!r} do not fit each other: {reference!r} is a {ours!r} and "
                f"{alias!r} a {theirs!r}, whose weights differ; merge models of one architecture"
            )
    return problems


def open_source_headers(
    config: SourceConfig,
    base_dir: Path,
    alias: str = "model",
    *,
    opened: dict[tuple[str, str | None], HeaderCheckpoint] | None = None,
) -> ModelSource:
    """Open one source without its weights.

    Args:
        config: how the recipe names it.
        base_dir: where relative folders start.
        alias: what errors call it.
        opened: models by name and revision, which are not asked for again.

    Raises:
        SourceError, RecipeError, NotBuiltError: when it cannot be used.
    """
    try:
        if isinstance(config.model, Recipe):
            model: ModelSource = _nested(config.model, base_dir)
        else:
            opened = {} if opened is None else opened
            key = config.model, config.revision
            if key not in opened:
                opened[key] = open_headers(*key, base_dir)
            model = opened[key]
        if config.adapter is not None:
            model = AdaptedModel(model, open_adapter_headers(config.adapter, config.adapter_revision, base_dir))
    except SourceError as error:
        raise SourceError(f"sources.{alias}: {error}") from None
    return model


def _nested(recipe: Recipe, base_dir: Path) -> NestedModel:
    inner = read_headers(recipe, base_dir)
    if inner.sources is None:
        raise SourceError(inner.problems[0])
    return NestedModel(recipe, inner.sources)


def _statistics(config: SourceConfig, base_dir: Path) -> dict[StatisticKind, StatisticFile]:
    """Open statistics by their headers; whether they are of these weights, only the weights can tell."""
    if config.statistics is None:
        return {}
    folder = base_dir / Path(config.statistics).expanduser()
    paths: dict[StatisticKind, Path] = {kind: folder / f"{kind}.safetensors" for kind in KINDS}
    return {kind: StatisticFile(path) for kind, path in paths.items() if path.is_file()}
