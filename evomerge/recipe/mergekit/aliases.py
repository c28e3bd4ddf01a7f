"""Aliases for the models of a mergekit file."""

from __future__ import annotations

import re

from evomerge.documents import Key, did_you_mean
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.document import ModelRef
from evomerge.recipe.schema import SourceConfig


class Aliases:
    """The models that a file names, each under an alias made from the last part of its name."""

    def __init__(self, base: ModelRef | None) -> None:
        """Begin with the base, if there is one."""
        self._aliases: dict[ModelRef, str] = {}
        self.base = None if base is None else self.alias(base)
        """Alias of the base."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The native sources, in the order in which they were named."""
        return {
            alias: SourceConfig(
                model=ref.path,
                revision=ref.revision,
                adapter=ref.adapter,
                adapter_revision=ref.adapter_revision,
            )
            for ref, alias in self._aliases.items()
        }

    def alias(self, ref: ModelRef) -> str:
        """Return the alias of a model, a new one where it has none yet."""
        if ref not in self._aliases:
            word = (ref.adapter or ref.path).rstrip("/").split("/")[-1]
            word = re.sub(r"[^A-Za-z0-9_.-]+", "-", word.removeprefix("zoo:")).strip(".-") or "model"
            name, number = word, 1
            while name in self._aliases.values():
                number += 1
                name = f"{word}-{number}"
            self._aliases[ref] = name
        return self._aliases[ref]

    def known(self, ref: ModelRef, path: Key) -> str:
        """Return the alias of a model that was named before.

        Raises:
            RecipeError: when it was not; `path` is where it stands.
        """
        if ref not in self._aliases:
            hint = did_you_mean(ref.text, [known.text for known in self._aliases])
            raise RecipePathError(path, f"{ref.text!r} is not among the models that are merged{hint}")
        return self._aliases[ref]
