"""Recipes: immutable documents that fully determine a merged model's weights."""

from evomerge.recipe.blends import Blend, BlendConfig, SegmentConfig
from evomerge.recipe.copies import copied, simplified
from evomerge.recipe.expansion import ExpandedLayer, ExpandedRecipe, ExpandedSegment, expand
from evomerge.recipe.identity import SourceInfo, canonical, identity
from evomerge.recipe.resolution import MODULES, Module
from evomerge.recipe.schema import (
    Dtype,
    LayerConfig,
    ModulesConfig,
    PartConfig,
    Recipe,
    SourceConfig,
    TokenizerConfig,
    read_recipe,
)

__all__ = [
    "MODULES",
    "Blend",
    "BlendConfig",
    "Dtype",
    "ExpandedLayer",
    "ExpandedRecipe",
    "ExpandedSegment",
    "LayerConfig",
    "Module",
    "ModulesConfig",
    "PartConfig",
    "Recipe",
    "SegmentConfig",
    "SourceConfig",
    "SourceInfo",
    "TokenizerConfig",
    "canonical",
    "copied",
    "expand",
    "identity",
    "read_recipe",
    "simplified",
]
