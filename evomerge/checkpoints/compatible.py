"""Whether models fit each other: the same tensors, of the same shapes, for the same tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

from evomerge.checkpoints.tokenizers import check_same_tokenizer
from evomerge.checkpoints.types import ModelSource, TensorInfo
from evomerge.errors import SourceError

_BUFFER = re.compile(r"(^|[._])(inv_freq|position_ids|masked_bias|running_mean|running_var|num_batches_tracked)$")


def is_buffer(name: str, info: TensorInfo) -> bool:
    """Tell whether a tensor is a buffer, which is not merged: integers, booleans, known float buffers."""
    return not info.dtype.is_floating_point or _BUFFER.search(name) is not None


def parameter_names(model: ModelSource) -> tuple[str, ...]:
    """Return the names of the tensors that are merged: all but buffers, in canonical order."""
    return tuple(name for name in model.names() if not is_buffer(name, model.info(name)))


def check_compatible(models: Mapping[str, ModelSource], reference: str, *, same_tokenizer: bool = True) -> None:
    """Refuse models that cannot be merged with each other.

    Args:
        models: alias -> model.
        reference: alias of the model that the others are held against.
        same_tokenizer: whether tokens must have the same ids everywhere.

    Raises:
        SourceError: naming the first difference: the two aliases, what differs, and both values.
    """
    for alias, model in models.items():
        if alias == reference:
            continue
        _check_sizes(reference, models[reference], alias, model)
        _check_tensors(reference, models[reference], alias, model)
        if same_tokenizer:
            check_same_tokenizer(reference, models[reference].folder, alias, model.folder)


def _check_sizes(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    sizes = (
        ("layers", one.layout.num_layers, other.layout.num_layers),
        ("a hidden size of", one.layout.hidden_size, other.layout.hidden_size),
        ("a vocabulary of", one.layout.vocab_size, other.layout.vocab_size),
    )
    for what, ours, theirs in sizes:
        if ours != theirs:
            ours_text, theirs_text = (
                f"{value} {what}" if what == "layers" else f"{what} {value}" for value in (ours, theirs)
            )
            raise SourceError(
                f"sources {first!r} and {second!r} do not fit each other: {first!r} has {ours_text}, "
                f"{second!r} has {theirs_text}; merge models of one architecture and size"
            )


def _check_tensors(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    ours, theirs = parameter_names(one), parameter_names(other)
    if ours != theirs:
        name = min(set(ours) ^ set(theirs))
        has, lacks = (first, second) if name in set(ours) else (second, first)
        raise SourceError(
            f"sources {first!r} and {second!r} do not fit each other: {has!r} has a tensor {name!r}, "
            f"which {lacks!r} lacks; merge models of one architecture"
        )
    for name in ours:
        shape, other_shape = one.info(name).shape, other.info(name).shape
        if shape != other_shape:
            raise SourceError(
                f"sources {first!r} and {second!r} do not fit each other: tensor {name!r} has the shape "
                f"{shape} in {first!r} and {other_shape} in {second!r}; merge models of one size"
            )
