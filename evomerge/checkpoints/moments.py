"""Adam's second moments of a training checkpoint, or any other importance of weights, from a safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.compatible import parameter_names
from evomerge.checkpoints.files import PICKLED, WeightFile
from evomerge.checkpoints.reader import is_finite
from evomerge.checkpoints.types import ModelSource
from evomerge.errors import SourceError

_SECOND_MOMENT = "exp_avg_sq"


def read_moments(path: Path, model: ModelSource) -> dict[str, Tensor]:
    """Read the second moments of a model's parameters.

    Keys are parameter names with whatever an optimizer puts around them (`state.NAME.exp_avg_sq`); where one of them
    has a part `exp_avg_sq`, only those that have count.

    Args:
        path: a safetensors file.
        model: the model as it was when training ended.

    Returns:
        Parameter name -> float32 tensor of its shape, not negative. A parameter that the file lacks is not among them.

    Raises:
        SourceError: for a pickled file, or one that does not fit the model.
    """
    if path.is_dir() or path.suffix in PICKLED:
        what = "a folder" if path.is_dir() else "pickled, and reading pickle can run any code, so it is refused"
        raise SourceError(
            f"{path}: this is {what}; give a safetensors file of the second moments under the parameters' names "
            "(docs/statistics.md shows how to convert an optimizer's state)"
        )
    file = WeightFile(path)
    moments = [key for key in file.infos if _SECOND_MOMENT in key.split(".")]
    names = frozenset(parameter_names(model))
    found: dict[str, Tensor] = {}
    for key in moments or file.infos:
        name = _named(key, names)
        if name is None:
            raise SourceError(f"{path}: {key!r} names no parameter of the model; give the model that it was trained as")
        if name in found:
            raise SourceError(f"{path}: {key!r} is the second entry for {name!r}; leave one of them out")
        found[name] = _checked(file, key, model.info(name).shape)
    if not found:
        raise SourceError(f"{path}: it holds no tensors; give the second moments of the model's parameters")
    return found


def _named(key: str, names: frozenset[str]) -> str | None:
    parts = [part for part in key.split(".") if part != _SECOND_MOMENT]
    tails = (".".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail in names), None)


def _checked(file: WeightFile, key: str, shape: tuple[int, ...]) -> Tensor:
    info = file.infos[key]
    if info.shape != shape:
        raise SourceError(
            f"{file.path}: {key!r} has shape {info.shape}, and its parameter {shape}; gather its shards first"
        )
    tensor = file.tensor(key).to(torch.float32, copy=True)
    if not is_finite(tensor) or (tensor.numel() and float(tensor.min()) < 0):
        raise SourceError(
            f"{file.path}: {key!r} has values that are negative, NaN or infinite; these are no second moments"
        )
    return tensor
