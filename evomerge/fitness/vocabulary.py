"""The vocabulary that an engine serves: the template's, for an engine holds one tokenizer for its whole life."""

from __future__ import annotations

from evomerge.checkpoints import read_vocabulary
from evomerge.errors import SourceError
from evomerge.merging import Sources
from evomerge.merging.opening import assets_source
from evomerge.recipe import Recipe


class ServedVocabulary:
    """Tokens and number of rows of the models that an engine can hold."""

    def __init__(self, template: Recipe, sources: Sources) -> None:
        """Take those of a template over its opened sources."""
        self.folder = assets_source(template, sources).folder
        """Folder of the tokenizer."""
        self._is_aligned = sources.is_aligned
        self._num_rows = sources.models[sources.reference].layout.vocab_size
        self._tokens = read_vocabulary(self.folder) if sources.is_aligned else None

    def check(self, recipe: Recipe, sources: Sources) -> None:
        """Refuse a recipe, over its opened sources, of another vocabulary.

        Raises:
            SourceError: saying so.
        """
        if not (self._is_aligned or sources.is_aligned):
            return
        tokens = read_vocabulary(assets_source(recipe, sources).folder)
        rows = sources.models[sources.reference].layout.vocab_size
        if rows != self._num_rows or tokens != (self._tokens or read_vocabulary(self.folder)):
            raise SourceError(
                "tokenizer: this recipe's model has another vocabulary than the search, whose tokenizer the engine "
                "serves; give the recipe the `tokenizer` of the search and all of its sources"
            )
