"""Opening the sources of a recipe, whatever they are: folders, hub ids, embedded models, recipes, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.checkpoints import (
    AdaptedModel,
    Adapter,
    Checkpoint,
    Layout,
    ModelSource,
    StatisticFile,
    TensorInfo,
    align,
    check_compatible,
    kept_source,
    open_checkpoint,
    open_statistics,
    resolve_adapter,
    resolve_model,
    unaligned,
)
from evomerge.errors import SourceError
from evomerge.merging.materialise import make_tensor
from evomerge.merging.plan import MergePlan, plan
from evomerge.merging.sources import Sources, vocabulary_rule
from evomerge.operators.metadata import StatisticKind
from evomerge.recipe import Recipe, SourceConfig, identity


class NestedModel:
    """A recipe as a source: its tensors are computed when they are asked for."""

    def __init__(self, recipe: Recipe, sources: Sources) -> None:
        """Plan the inner recipe.

        Raises:
            NotBuiltError, RecipeError: as `plan` does.
        """
        self._plan: MergePlan = plan(recipe, sources)
        self._by_name = {planned.name: planned for planned in self._plan.tensors}
        reference = sources.models[sources.reference]
        self.tied: Mapping[str, str] = reference.tied
        self.config: Mapping[str, Any] = self._plan.config()
        self.layout: Layout = reference.layout
        if self._plan.route.is_moved:
            self.layout = Layout(self._plan.infos, self.config, "nested recipe")
        self._assets = assets_source(recipe, sources)

    @property
    def folder(self) -> Path:
        """The folder that holds its tokenizer and generation settings."""
        return self._assets.folder

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(self._by_name)

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor of the inner merge.

        Raises:
            KeyError: when there is no such tensor.
        """
        return self._by_name[name].info

    def tensor(self, name: str) -> Tensor:
        """Compute a tensor of the inner merge.

        Raises:
            KeyError: when there is no such tensor.
            SourceError, InfeasibleError: as `materialise` does.
        """
        return make_tensor(self._plan, self._by_name[name])

    @cached_property
    def content_hash(self) -> str:
        """`recipe:` and the identity of the inner recipe."""
        return f"recipe:{identity(self._plan.recipe, self._plan.sources.infos)}"


def reference_alias(recipe: Recipe) -> str:
    """Return the source whose configuration the merged model has: the base, else the first one."""
    return recipe.base if recipe.base is not None else next(iter(recipe.sources))


def assets_source(recipe: Recipe, sources: Sources) -> ModelSource:
    """Return the source whose tokenizer, chat template and generation settings the merged model has."""
    return sources.models[reference_alias(recipe) if recipe.tokenizer is None else kept_source(recipe.tokenizer)]


def open_sources(
    recipe: Recipe,
    base_dir: Path,
    *,
    resident: bool = False,
    device: str = "cpu",
    any_depth: bool | None = None,
    like: Sources | None = None,
) -> Sources:
    """Open every source of a recipe, recipes among them too, and check that they fit each other.

    Args:
        recipe: what to open the sources of; any recipe over the same sources can then be planned.
        base_dir: where relative folders start.
        resident: keep all weights in memory as float32 (4 bytes a parameter and source), so that merging
            again reads no file; else only what a tensor needs is read, when it is needed.
        device: where resident weights are kept.
        any_depth: whether sources may differ in depth; None: if the recipe says which layers it takes.
        like: opened before over the same `base_dir` and `device`: of what both name, nothing is read again.

    Raises:
        SourceError: a source that cannot be read or does not fit the others, or resident weights with NaN.
        NotBuiltError: a recipe that this version cannot build.
    """
    known = [] if like is None else [unaligned(model) for model in like.models.values()]
    known += [model.base for model in known if isinstance(model, AdaptedModel)]
    opened = {model.folder.resolve(): model for model in known if isinstance(model, Checkpoint)}
    return _open(recipe, base_dir, opened, resident=device if resident else None, any_depth=any_depth, like=like)


def _open(
    recipe: Recipe,
    base_dir: Path,
    opened: dict[Path, Checkpoint],
    *,
    resident: str | None = None,
    any_depth: bool | None = None,
    like: Sources | None = None,
) -> Sources:
    originals = {alias: _open_one(alias, config, base_dir, opened, like) for alias, config in recipe.sources.items()}
    models = _aligned(recipe, originals, like)
    reference = reference_alias(recipe)
    same_tokenizer = recipe.tokenizer is None
    any_depth = recipe.layers is not None if any_depth is None else any_depth
    check_compatible(models, reference, same_tokenizer=same_tokenizer, any_depth=any_depth)
    files = {
        alias: _open_statistics(alias, config, originals[alias], base_dir) for alias, config in recipe.sources.items()
    }
    vocabulary = vocabulary_rule(recipe)
    return Sources(recipe.sources, models, reference, files=files, vocabulary=vocabulary, resident=resident, like=like)


def _aligned(recipe: Recipe, originals: Mapping[str, ModelSource], like: Sources | None) -> Mapping[str, ModelSource]:
    """Return models in the recipe's vocabulary; those of `like`, with what is kept of them, where they are the same."""
    if recipe.tokenizer is None:
        return originals
    same = like is not None and like.vocabulary == vocabulary_rule(recipe)
    if like is not None and same and {alias: unaligned(model) for alias, model in like.models.items()} == originals:
        return like.models
    return align(originals, recipe.tokenizer, recipe.base)


def _open_statistics(
    alias: str, config: SourceConfig, model: ModelSource, base_dir: Path
) -> dict[StatisticKind, StatisticFile]:
    if config.statistics is None:
        return {}
    try:
        return open_statistics(base_dir / Path(config.statistics).expanduser(), model)
    except SourceError as error:
        raise SourceError(f"sources.{alias}: {error}") from None


def open_source(config: SourceConfig, base_dir: Path) -> ModelSource:
    """Open one source by itself.

    Raises:
        SourceError: when it cannot be read.
        NotBuiltError: a nested recipe that this version cannot build.
    """
    alias = config.model if isinstance(config.model, str) else "model"
    return _open_one(alias, config, base_dir, {}, None)


def _open_one(
    alias: str, config: SourceConfig, base_dir: Path, opened: dict[Path, Checkpoint], like: Sources | None
) -> ModelSource:
    if like is not None and like.configs.get(alias) == config:
        return unaligned(like.models[alias])
    model: ModelSource
    if isinstance(config.model, Recipe):
        model = NestedModel(config.model, _open(config.model, base_dir, opened, like=like))
    try:
        if isinstance(config.model, str):
            folder = resolve_model(config.model, config.revision, base_dir)
            if (key := folder.resolve()) not in opened:
                opened[key] = open_checkpoint(folder)
            model = opened[key]
        if config.adapter is not None:
            model = AdaptedModel(model, Adapter(resolve_adapter(config.adapter, config.adapter_revision, base_dir)))
    except SourceError as error:
        raise SourceError(f"sources.{alias}: {error}") from None
    return model
