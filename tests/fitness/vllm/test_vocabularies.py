"""Vocabularies in the vLLM engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from evomerge.errors import SourceError
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from evomerge.fitness.vllm.engine import VllmEngine


def test_a_recipe_of_another_vocabulary_is_refused(engine: VllmEngine, zoo_recipe: Callable[..., Recipe]) -> None:
    padded = {**zoo_recipe(math=0.5).to_mapping(), "tokenizer": {"from": "base", "pad_to_multiple_of": 500}}
    with pytest.raises(SourceError, match="another vocabulary than the search"):
        engine.load(Recipe.from_mapping(padded))
    engine.load(zoo_recipe(math=0.5))
