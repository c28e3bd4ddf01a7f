"""The configuration of a model whose layers are another model's, in another order and number."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.checkpoints.blocks import text_section
from evomerge.checkpoints.layout import COUNT_KEYS
from evomerge.errors import NotBuiltError, SourceError

_PER_LAYER = re.compile(r"layer|block|window|attention_types")
"""What the keys of per-layer lists have in their names; other lists (token ids) may happen to be as long."""
_INDEX_LISTS = ("mlp_only_layers",)
"""Keys that list the indices of some layers."""
_DERIVED = {
    "layer_types": ("sliding_window_pattern", "_sliding_window_pattern", "no_rope_layer_interval"),
    "no_rope_layers": ("no_rope_layer_interval",),
}
"""Periods that older configurations have in place of a list; beside the list they would contradict it."""


@dataclass(frozen=True, slots=True)
class LayerKinds:
    """What a configuration says of each layer on its own."""

    lists: Mapping[str, tuple[Any, ...]]
    """Key -> one value a layer, for what the configuration lists or implies by a period."""
    members: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Key -> the layers whose indices it lists."""
    dense: frozenset[int] | None = None
    """The layers without experts, where a rule says which these are; None where no rule does."""

    def at(self, layer: int) -> dict[str, Any]:
        """Return everything that is said of one layer, to compare layers by."""
        found = {key: values[layer] for key, values in self.lists.items()}
        found |= {key: layer in indices for key, indices in self.members.items()}
        return found if self.dense is None else found | {"dense": layer in self.dense}


def layer_kinds(config: Mapping[str, Any], num_layers: int, label: str) -> LayerKinds:
    """Read what a configuration says of each layer, also where it says it by a period or a threshold.

    Args:
        config: the parsed `config.json`.
        num_layers: layers that the checkpoint has.
        label: what errors call the model.

    Raises:
        NotBuiltError: when transformers does not know the architecture, or more layers are stored than declared.
    """
    section = _completed(config, label)
    declared = next((section[key] for key in COUNT_KEYS if isinstance(section.get(key), int)), num_layers)
    if declared != num_layers:
        raise NotBuiltError(
            f"source {label!r}: {num_layers} layers are stored and {declared} declared (the rest predict further "
            f"tokens), so they cannot be rearranged or scaled; merge them one to one"
        )
    lists = {
        key: tuple(value)
        for key, value in section.items()
        if isinstance(value, list | tuple) and len(value) == num_layers and _PER_LAYER.search(key)
        if key not in _INDEX_LISTS
    }
    return LayerKinds(lists, *_expert_layers(section, num_layers))


def _expert_layers(
    section: Mapping[str, Any], num_layers: int
) -> tuple[dict[str, frozenset[int]], frozenset[int] | None]:
    first = section.get("first_k_dense_replace")
    if isinstance(first, int):
        return {}, frozenset(range(min(first, num_layers)))
    if "mlp_only_layers" not in section:
        return {}, None
    listed = frozenset(section["mlp_only_layers"] or ())
    step = section.get("decoder_sparse_step") or 1
    return {"mlp_only_layers": listed | {index for index in range(num_layers) if (index + 1) % step}}, None


def routed_config(config: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """Return a configuration for layers of the given kinds, in this order.

    Args:
        config: of the model that the result takes after in everything else.
        kinds: for every layer, what `LayerKinds.at` says of it.
        label: what errors call the model.

    Raises:
        SourceError: when the configuration has no way to say it.
    """
    result = copy.deepcopy(dict(config))
    section = result["text_config"] if isinstance(result.get("text_config"), dict) else result
    counts = [(part, key) for part in (section, result) for key in COUNT_KEYS if isinstance(part.get(key), int)]
    for part, key in counts or [(section, "num_hidden_layers")]:
        part[key] = len(kinds)
    for key in kinds[0]:
        values = [kind[key] for kind in kinds]
        if key in _INDEX_LISTS:
            section[key] = [index for index, value in enumerate(values) if value]
            section["decoder_sparse_step"] = 1
        elif key == "dense":
            section["first_k_dense_replace"] = _prefix(values, label)
        elif key in text_section(config) or len(set(map(repr, values))) > 1 or key in _DERIVED:
            section[key] = values
            for period in _DERIVED.get(key, ()):
                section.pop(period, None)
    _check(result, kinds, label)
    return result


def _prefix(dense: Sequence[bool], label: str) -> int:
    count = sum(dense)
    if not all(dense[:count]):
        raise SourceError(
            f"source {label!r}: its configuration can only put layers without experts first (first_k_dense_replace), "
            f"and this route takes one of them after a layer with experts"
        )
    return count


def _check(config: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]], label: str) -> None:
    """Hold the new configuration against what transformers reads from it."""
    found = layer_kinds(config, len(kinds), label)
    for index, kind in enumerate(kinds):
        if found.at(index) != kind:
            raise SourceError(
                f"source {label!r}: its configuration cannot say that layer {index} is {dict(kind)}, which this "
                f"route needs; transformers reads {found.at(index)}"
            )


def _completed(config: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Let transformers add its defaults: many files leave per-layer lists out and imply them by a period."""
    from transformers import AutoConfig

    section = text_section(config)
    settings = {key: value for key, value in section.items() if key not in ("model_type", "transformers_version")}
    try:
        whole = AutoConfig.for_model(str(section.get("model_type")), **_decoded(settings))
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise NotBuiltError(
            f"source {label!r}: transformers cannot read its configuration ({reason}), so its layers cannot be "
            f"rearranged; merge them one to one"
        ) from None
    data: dict[str, Any] = whole.to_dict()
    return data


def _decoded(value: Any) -> Any:
    """Copy plain data, with the floats that JSON lacks as transformers writes them: {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value
