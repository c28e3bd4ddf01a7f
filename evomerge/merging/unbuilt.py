"""What a recipe may say but this version cannot build: refused by name, never ignored."""

from __future__ import annotations

from evomerge.errors import NotBuiltError
from evomerge.recipe import Recipe


def refuse_unbuilt(recipe: Recipe) -> None:
    """Refuse united tokenizers.

    Raises:
        NotBuiltError: naming the key path and what is possible now.
    """
    if recipe.tokenizer is not None and recipe.tokenizer.union is not None:
        raise NotBuiltError(
            "tokenizer.union: vocabularies cannot be united yet; merge models of one vocabulary and write "
            "`tokenizer: {from: ALIAS}`"
        )
