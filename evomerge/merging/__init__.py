"""Merging: a recipe and its sources become tensors, streamed to a folder or into a resident model."""

from __future__ import annotations

from evomerge.merging.build import BuildReport, build, merge, portable_recipe
from evomerge.merging.materialise import make_tensor, materialise
from evomerge.merging.opening import NestedModel, open_sources
from evomerge.merging.plan import DTYPES, MergePlan, PlannedTensor, plan
from evomerge.merging.progress import MergeProgress, terminal_progress
from evomerge.merging.sources import Sources
from evomerge.merging.statistics import Statistics

__all__ = [
    "DTYPES",
    "BuildReport",
    "MergePlan",
    "MergeProgress",
    "NestedModel",
    "PlannedTensor",
    "Sources",
    "Statistics",
    "build",
    "make_tensor",
    "materialise",
    "merge",
    "open_sources",
    "plan",
    "portable_recipe",
    "terminal_progress",
]
