"""Whether models fit each other: the same tensors, of the same shapes, for the same tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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


def check_compatible(
    models: Mapping[str, ModelSource], reference: str, *, same_tokenizer: bool = True, any_depth: bool = False
) -> None:
    """Refuse models that cannot be merged with each other.

    Args:
        models: alias -> model.
        reference: alias of the model that the others are held against.
        same_tokenizer: whether tokens must have the same ids everywhere.
        any_depth: whether they may have different numbers of layers, as long as the layers are alike.

    Raises:
        SourceError: naming the first difference: the two aliases, what differs, and both values.
    """
    for alias, model in models.items():
        if alias == reference:
            continue
        _check_sizes(reference, models[reference], alias, model, any_depth=any_depth)
        if same_tokenizer:
            check_same_tokenizer(reference, models[reference].folder, alias, model.folder)
        _check_vocabularies(reference, models[reference], alias, model)
        if models[reference].layout.num_layers == model.layout.num_layers:
            _check_tensors(reference, models[reference], alias, model)
        else:
            _check_depths(reference, models[reference], alias, model)
        _check_heads(reference, models[reference], alias, model)


def _check_sizes(first: str, one: ModelSource, second: str, other: ModelSource, *, any_depth: bool) -> None:
    sizes = (
        ("layers", one.layout.num_layers, other.layout.num_layers),
        ("a hidden size of", one.layout.hidden_size, other.layout.hidden_size),
    )
    for what, ours, theirs in sizes[any_depth:]:
        if ours != theirs:
            ours_text, theirs_text = (
                f"{value} {what}" if what == "layers" else f"{what} {value}" for value in (ours, theirs)
            )
            raise SourceError(
                f"sources {first!r} and {second!r} do not fit each other: {first!r} has {ours_text}, "
                f"{second!r} has {theirs_text}; merge models of one architecture and size"
            )


def _check_vocabularies(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    ours, theirs = one.layout.vocab_size, other.layout.vocab_size
    if ours != theirs:
        raise SourceError(
            f"sources {first!r} and {second!r} do not fit each other: {first!r} has a vocabulary of {ours}, {second!r} "
            f"has a vocabulary of {theirs}; align the rows of their embeddings with `tokenizer: {{from: {first}}}`"
        )


def _check_heads(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    """Compare what shapes do not show: 8 heads of 16 and 16 heads of 8 have the same projections."""
    ours, theirs = (_heads(model.config) for model in (one, other))
    for key in ours.keys() & theirs.keys():
        if ours[key] != theirs[key]:
            raise SourceError(
                f"sources {first!r} and {second!r} do not fit each other: {key} is {ours[key]} in {first!r} and "
                f"{theirs[key]} in {second!r}; merge models of one head layout"
            )


def _heads(config: Mapping[str, Any]) -> dict[str, int]:
    text = config.get("text_config")
    section = text if isinstance(text, Mapping) else config
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "num_heads")
    return {key: section[key] for key in keys if isinstance(section.get(key), int)}


def _check_tensors(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    ours, theirs = parameter_names(one), parameter_names(other)
    _check_names(first, set(ours), second, set(theirs))
    for name in ours:
        _check_shape(first, one.info(name).shape, second, other.info(name).shape, name)


def _check_depths(first: str, one: ModelSource, second: str, other: ModelSource) -> None:
    """Compare models of different depth: what is outside of the layers, and the kinds of layers."""
    ours, theirs = (
        {name for name in parameter_names(model) if model.layout.place(name).layer is None} for model in (one, other)
    )
    _check_names(first, ours, second, theirs)
    for name in sorted(ours):
        _check_shape(first, one.info(name).shape, second, other.info(name).shape, name)
    known = [layer_shapes(one, layer) for layer in range(one.layout.num_layers)]
    for layer in range(other.layout.num_layers):
        found = layer_shapes(other, layer)
        if found not in known:
            check_layers_fit(first, known[min(layer, len(known) - 1)], second, found, f"layer {layer}")


def layer_shapes(model: ModelSource, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's parameters by their names within the layer."""
    names = {part: model.layout.full_name(layer, part) for part in model.layout.parts(layer)}
    infos = {part: model.info(name) for part, name in names.items()}
    return {part: info.shape for part, info in infos.items() if not is_buffer(names[part], info)}


def check_layers_fit(
    first: str,
    ours: Mapping[str, tuple[int, ...]],
    second: str,
    theirs: Mapping[str, tuple[int, ...]],
    where: str,
) -> None:
    """Refuse two layers, each as `layer_shapes` says, that differ in a tensor or in its shape.

    Args:
        first: alias of the one's source.
        ours: the one.
        second: alias of the other's source.
        theirs: the other.
        where: what errors say before the tensor's name.

    Raises:
        SourceError: naming the first difference.
    """
    _check_names(first, set(ours), second, set(theirs), where)
    for part, shape in ours.items():
        _check_shape(first, shape, second, theirs[part], part, where)


def _check_names(first: str, ours: set[str], second: str, theirs: set[str], where: str = "") -> None:
    if ours != theirs:
        name = min(ours ^ theirs)
        has, lacks = (first, second) if name in ours else (second, first)
        raise SourceError(
            f"sources {first!r} and {second!r} do not fit each other: {has!r} has a tensor {name!r}"
            f"{where and f' in {where}'}, which {lacks!r} lacks; merge models of one architecture"
        )


def _check_shape(
    first: str, ours: tuple[int, ...], second: str, theirs: tuple[int, ...], name: str, where: str = ""
) -> None:
    if ours != theirs:
        raise SourceError(
            f"sources {first!r} and {second!r} do not fit each other: tensor {name!r}{where and f' of {where}'} has "
            f"the shape {ours} in {first!r} and {theirs} in {second!r}; merge models of one size"
        )
