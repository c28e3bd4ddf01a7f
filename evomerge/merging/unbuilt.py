"""What a recipe may say but this version cannot build: refused by name, never ignored."""

from __future__ import annotations

from evomerge.errors import NotBuiltError
from evomerge.recipe import Recipe


def refuse_unbuilt(recipe: Recipe) -> None:
    """Refuse adapters, united tokenizers and segments.

    Raises:
        NotBuiltError: naming the key path and what is possible now.
    """
    for alias, source in recipe.sources.items():
        if source.adapter is not None:
            raise NotBuiltError(
                f"sources.{alias}.adapter: adapters cannot be merged yet; write the adapter into its model "
                f"first (peft: merge_and_unload) and name the result as `model`"
            )
    if recipe.tokenizer is not None and recipe.tokenizer.union is not None:
        raise NotBuiltError(
            "tokenizer.union: vocabularies cannot be united yet; merge models of one vocabulary and write "
            "`tokenizer: {from: ALIAS}`"
        )
    if recipe.segments is not None:
        raise NotBuiltError(
            "segments: piecewise blends cannot be built yet; "
            "give blends by `layers`, `modules`, `embeddings` and `head`"
        )
