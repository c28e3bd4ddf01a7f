"""Recipes: immutable documents that fully determine a merged model's weights."""

from evomerge.recipe.blends import Blend, BlendConfig, SegmentConfig
from evomerge.recipe.copies import copied, simplified
from evomerge.recipe.expansion import ExpandedLayer, ExpandedRecipe, expand
from evomerge.recipe.identity import SourceInfo, canonical, identity
from evomerge.recipe.lines import Lines, LinesConfig
from evomerge.recipe.resolution import (
    CHROMOSOMES,
    GROUPS,
    MODULES,
    Chromosome,
    ExpandedSegment,
    Group,
    Module,
    Rule,
    blend_of,
    written_segments,
)
from evomerge.recipe.schema import (
    Dtype,
    LayerConfig,
    ModulesConfig,
    PartConfig,
    Recipe,
    SourceConfig,
    TensorsConfig,
    TokenConfig,
    TokenizerConfig,
    read_recipe,
)

__all__ = [
    "CHROMOSOMES",
    "GROUPS",
    "MODULES",
    "Blend",
    "BlendConfig",
    "Chromosome",
    "Dtype",
    "ExpandedLayer",
    "ExpandedRecipe",
    "ExpandedSegment",
    "Group",
    "LayerConfig",
    "Lines",
    "LinesConfig",
    "Module",
    "ModulesConfig",
    "PartConfig",
    "Recipe",
    "Rule",
    "SegmentConfig",
    "SourceConfig",
    "SourceInfo",
    "TensorsConfig",
    "TokenConfig",
    "TokenizerConfig",
    "blend_of",
    "canonical",
    "copied",
    "expand",
    "identity",
    "read_recipe",
    "simplified",
    "written_segments",
]
