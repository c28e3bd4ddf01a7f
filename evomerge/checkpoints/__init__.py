"""Checkpoints in and out: safetensors folders, mapped into memory, read and written tensor by tensor."""

from __future__ import annotations

from evomerge.checkpoints.adapted import AdaptedModel, Update
from evomerge.checkpoints.adapters import Adapter
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
from evomerge.checkpoints.layout import Layout, Module, Place
from evomerge.checkpoints.reader import Checkpoint, check_finite, is_finite, not_finite_text, open_checkpoint
from evomerge.checkpoints.resolve import local_folder, resolve_adapter, resolve_model, zoo_names
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.checkpoints.types import ModelSource, TensorInfo, TensorSource
from evomerge.checkpoints.writer import DEFAULT_SHARD_BYTES, CheckpointWriter, check_free

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "FAMILIES",
    "AdaptedModel",
    "Adapter",
    "Blocks",
    "Checkpoint",
    "CheckpointWriter",
    "LayerKinds",
    "Layout",
    "ModelSource",
    "Module",
    "Place",
    "Role",
    "TensorInfo",
    "TensorSource",
    "Update",
    "check_compatible",
    "check_finite",
    "check_free",
    "check_layers_fit",
    "copy_assets",
    "is_buffer",
    "is_finite",
    "layer_kinds",
    "layer_shapes",
    "local_folder",
    "not_finite_text",
    "open_checkpoint",
    "output_config",
    "parameter_names",
    "read_vocabulary",
    "resolve_adapter",
    "resolve_model",
    "routed_config",
    "zoo_names",
]
