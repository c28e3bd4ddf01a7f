"""A recipe's faults, each with the key path it is about."""

from __future__ import annotations

from evomerge.documents import Key, dotted_path
from evomerge.errors import RecipeError


class RecipePathError(RecipeError):
    """A `RecipeError` that knows the key path of what is wrong."""

    def __init__(self, path: Key, text: str) -> None:
        """Store the key path and the sentence about it."""
        super().__init__(f"{dotted_path(path)}: {text}" if path else text)
        self.path = path
        self.text = text
