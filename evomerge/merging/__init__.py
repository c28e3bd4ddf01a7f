"""Merging: a recipe and its sources become tensors, streamed to a folder or into a resident model."""

from __future__ import annotations

from evomerge.merging.adapters import LoraAdapter, as_adapter, build_adapter
from evomerge.merging.build import BuildReport, build, merge, portable_recipe
from evomerge.merging.dtypes import DTYPES
from evomerge.merging.folding import Rescale
from evomerge.merging.headers import Headers, open_source_headers, read_headers
from evomerge.merging.materialise import make_tensor, materialise, threads_for
from evomerge.merging.mergekit import RecipeFile, facts_of, read_recipe_file, read_search
from evomerge.merging.opening import NestedModel, open_sources
from evomerge.merging.passthrough import to_mergekit, to_mergekit_passthrough
from evomerge.merging.plan import MergePlan, PlannedTensor, plan
from evomerge.merging.progress import MergeProgress, terminal_progress
from evomerge.merging.routes import Hop, Route
from evomerge.merging.slots import Frame, Kind, needed_slots, own_slots, seat, slots_config, widened
from evomerge.merging.sources import Sources
from evomerge.merging.statistics import Statistics

__all__ = [
    "DTYPES",
    "BuildReport",
    "Frame",
    "Headers",
    "Hop",
    "Kind",
    "LoraAdapter",
    "MergePlan",
    "MergeProgress",
    "NestedModel",
    "PlannedTensor",
    "RecipeFile",
    "Rescale",
    "Route",
    "Sources",
    "Statistics",
    "as_adapter",
    "build",
    "build_adapter",
    "facts_of",
    "make_tensor",
    "materialise",
    "merge",
    "needed_slots",
    "open_source_headers",
    "open_sources",
    "own_slots",
    "plan",
    "portable_recipe",
    "read_headers",
    "read_recipe_file",
    "read_search",
    "seat",
    "slots_config",
    "terminal_progress",
    "threads_for",
    "to_mergekit",
    "to_mergekit_passthrough",
    "widened",
]
