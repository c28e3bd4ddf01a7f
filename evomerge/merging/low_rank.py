"""Sources that are LoRA adapters on the base: the factors of their task vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.checkpoints import AdaptedModel, AlignedModel, ModelSource, Update, unaligned
from evomerge.errors import RecipeError
from evomerge.merging.sources import Sources
from evomerge.operators.kernels.low_rank import LowRank
from evomerge.recipe import Blend

if TYPE_CHECKING:
    from evomerge.merging.plan import PlannedTensor


def check_adapters(sources: Sources, blend: Blend) -> None:
    """Refuse a blend of factors where a source is no adapter on the base.

    Raises:
        RecipeError: naming the first such source.
    """
    for alias in blend.sources:
        if _adapted(sources, alias, blend.base) is None:
            raise RecipeError(
                f"sources.{alias}: method {blend.method!r} adds the factors of LoRA adapters, and this source is no "
                f"adapter on the base {blend.base!r}; give it as `model` (that of the base) and `adapter`"
            )
        if _moves_factors(sources.models[alias]):
            raise RecipeError(
                f"sources.{alias}: method {blend.method!r} adds the factors of LoRA adapters, and this one changes the "
                f"embeddings, whose rows `tokenizer` moves; keep the tokenizer of {blend.base!r}"
            )


def low_rank(
    sources: Sources, blend: Blend, planned: PlannedTensor, device: str | None
) -> Callable[[int], LowRank | None]:
    """Return the function that gives a kernel the factors of a task vector (`Context.low_rank`).

    Args:
        sources: opened.
        blend: whose sources may be adapters on its base.
        planned: the tensor; where source and base take it from different layers, it is no update of the base's.
        device: where the factors are wanted; None: where they are.
    """

    def of_source(index: int) -> LowRank | None:
        alias = blend.sources[index]
        model, name = _adapted(sources, alias, blend.base), planned.name_in(alias)
        if model is None or blend.base is None or planned.name_in(blend.base) != name or name in model.whole:
            return None
        shown = sources.models[alias]
        if isinstance(shown, AlignedModel) and shown.moves(name):
            return None  # the factors have the rows of another vocabulary
        update = model.update(name)
        return None if update is None else _moved(update, device)

    return of_source


def as_low_rank(update: Update) -> LowRank:
    """Return an adapter's update in the form that kernels take."""
    return LowRank(first=update.first, second=update.second, scale=update.scale, transposed=update.transposed)


def _moved(update: Update, device: str | None) -> LowRank:
    found = as_low_rank(update)
    if device is None:
        return found
    return LowRank(
        first=found.first.to(device), second=found.second.to(device), scale=found.scale, transposed=found.transposed
    )


def _adapted(sources: Sources, alias: str, base: str | None) -> AdaptedModel | None:
    """Return a source that is an adapter on what the base is."""
    model = unaligned(sources.models[alias])
    if base is None or not isinstance(model, AdaptedModel):
        return None
    root = unaligned(sources.models[base])
    return model if model.base is root or model.base.content_hash == root.content_hash else None


def _moves_factors(model: ModelSource) -> bool:
    """Tell whether an adapter changes a tensor whose rows are moved."""
    if not isinstance(model, AlignedModel) or not isinstance(model.original, AdaptedModel):
        return False
    return any(model.moves(name) for name in {*model.original.modules, *model.original.whole})
