"""Checkpoints in and out: safetensors folders, mapped into memory, read and written tensor by tensor."""

from __future__ import annotations

from evomerge.checkpoints.assets import copy_assets, output_config
from evomerge.checkpoints.compatible import check_compatible, is_buffer, parameter_names
from evomerge.checkpoints.layout import Layout, Module, Place
from evomerge.checkpoints.reader import Checkpoint, check_finite, is_finite, not_finite_text, open_checkpoint
from evomerge.checkpoints.resolve import local_folder, resolve_model, zoo_names
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.checkpoints.types import ModelSource, TensorInfo, TensorSource
from evomerge.checkpoints.writer import DEFAULT_SHARD_BYTES, CheckpointWriter, check_free

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "Checkpoint",
    "CheckpointWriter",
    "Layout",
    "ModelSource",
    "Module",
    "Place",
    "TensorInfo",
    "TensorSource",
    "check_compatible",
    "check_finite",
    "check_free",
    "copy_assets",
    "is_buffer",
    "is_finite",
    "local_folder",
    "not_finite_text",
    "open_checkpoint",
    "output_config",
    "parameter_names",
    "read_vocabulary",
    "resolve_model",
    "zoo_names",
]
