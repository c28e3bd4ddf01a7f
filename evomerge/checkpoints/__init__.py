"""Checkpoints in and out: safetensors folders, mapped into memory, read and written tensor by tensor."""

from __future__ import annotations

from evomerge.checkpoints.adapted import AdaptedModel, Update
from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.aligned import AlignedModel, align, kept_source, unaligned
from evomerge.checkpoints.assets import copy_assets, output_config
from evomerge.checkpoints.blocks import FAMILIES, Blocks, Role
from evomerge.checkpoints.compatible import (
    check_compatible,
    check_layers_fit,
    is_buffer,
    layer_shapes,
    parameter_names,
)
from evomerge.checkpoints.depth import LayerKinds, layer_kinds, routed_config
from evomerge.checkpoints.headers import HeaderCheckpoint, open_adapter_headers, open_headers
from evomerge.checkpoints.layout import Layout, Module, Place
from evomerge.checkpoints.orientation import inputs_first
from evomerge.checkpoints.pins import hub_commits, pinned
from evomerge.checkpoints.reader import Checkpoint, check_finite, is_finite, not_finite_text, open_checkpoint
from evomerge.checkpoints.resolve import local_folder, resolve_adapter, resolve_model, zoo_names
from evomerge.checkpoints.statistics import StatisticFile, StatisticNote, open_statistics, write_statistic
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.checkpoints.types import ModelSource, TensorInfo, TensorSource
from evomerge.checkpoints.writer import DEFAULT_SHARD_BYTES, CheckpointWriter, check_free

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "FAMILIES",
    "AdaptedModel",
    "Adapter",
    "AlignedModel",
    "Blocks",
    "Checkpoint",
    "CheckpointWriter",
    "HeaderCheckpoint",
    "LayerKinds",
    "Layout",
    "ModelSource",
    "Module",
    "Place",
    "Role",
    "StatisticFile",
    "StatisticNote",
    "TensorInfo",
    "TensorSource",
    "Update",
    "align",
    "check_compatible",
    "check_finite",
    "check_free",
    "check_layers_fit",
    "copy_assets",
    "hub_commits",
    "inputs_first",
    "is_buffer",
    "is_finite",
    "kept_source",
    "layer_kinds",
    "layer_shapes",
    "local_folder",
    "not_finite_text",
    "open_adapter_headers",
    "open_checkpoint",
    "open_headers",
    "open_statistics",
    "output_config",
    "parameter_names",
    "pinned",
    "read_vocabulary",
    "resolve_adapter",
    "resolve_model",
    "routed_config",
    "unaligned",
    "write_statistic",
    "zoo_names",
]
