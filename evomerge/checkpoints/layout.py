"""What each tensor is for, read from names and shapes alone: no table of architectures.

A *stack* is a run of numbered blocks under one prefix (`model.layers.<i>.`, `transformer.h.<i>.`). The
language model's own stack is the one whose length is the configuration's layer count, else the largest.
Everything outside it is embeddings, head (with the final norm), or other (for instance a vision tower).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.checkpoints.types import TensorInfo
from evomerge.errors import SourceError

Module = Literal["attention", "mlp", "other", "embeddings", "head"]

_BLOCK = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers|h|blocks|block|layer))\.(?P<index>\d+)\.(?P<rest>.+)$")
_NORM = re.compile(r"norm|^ln(_|\d|$)")
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(
    r"^(mlp|ffn?|feed_?forward|experts?|shared_experts?|.*moe|fc\d*|dense(relu.*|_.*h)|intermediate|output)$"
)
_EMBEDDING = re.compile(r"^(wte|wpe|shared)$|embed")
_INPUT_EMBEDDING = re.compile(r"^(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|embeddings)$")
_HEAD = re.compile(r"^(lm_head|embed_out|output|score|classifier)$|head$")
COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs."""

    layer: int | None
    """Index of its layer, from 0; None outside the layers."""
    module: Module
    """Within a layer: attention, mlp or other (its norms); outside: embeddings, head, or other."""


class Layout:
    """The places of all tensors of one model.

    Example:
        >>> import torch
        >>> info = TensorInfo((4, 4), torch.float32)
        >>> names = [
        ...     "model.embed_tokens.weight",
        ...     "model.layers.0.self_attn.q_proj.weight",
        ...     "model.norm.weight",
        ... ]
        >>> layout = Layout(dict.fromkeys(names, info), {"num_hidden_layers": 1})
        >>> layout.place("model.layers.0.self_attn.q_proj.weight")
        Place(layer=0, module='attention')
        >>> layout.num_layers, layout.embedding
        (1, 'model.embed_tokens.weight')
    """

    def __init__(self, infos: Mapping[str, TensorInfo], config: Mapping[str, Any], label: str = "model") -> None:
        """Place every tensor.

        Args:
            infos: shape and dtype of every tensor.
            config: the parsed `config.json`.
            label: what errors call the model.

        Raises:
            SourceError: when layers are missing.
        """
        self.stack, self.num_layers = _main_stack(infos, config, label)
        """What the names of the layers' tensors begin with (`model.layers`); None where there are no layers."""
        self._places = {name: _place(name, self.stack) for name in infos}
        self._by_layer: dict[int, tuple[str, ...]] | None = None
        self.embedding: str | None = _input_embedding(infos, self._places)
        """The matrix of input embeddings, of shape (vocabulary, hidden), where one is found."""
        shape = infos[self.embedding].shape if self.embedding else None
        self.vocab_size: int | None = shape[0] if shape else _declared(config, ("vocab_size",))
        self.hidden_size: int | None = shape[1] if shape else _declared(config, ("hidden_size", "n_embd", "d_model"))

    def place(self, name: str) -> Place:
        """Return where a tensor belongs.

        Raises:
            KeyError: when the model has no such tensor.
        """
        return self._places[name]

    def parts(self, layer: int) -> tuple[str, ...]:
        """Return the names of a layer's tensors within it (`mlp.up_proj.weight`), in the order of the model's names.

        Args:
            layer: from 0 to below `num_layers`.
        """
        if self._by_layer is None:
            found: dict[int, list[str]] = defaultdict(list)
            for name, place in self._places.items():
                if place.layer is not None:
                    found[place.layer].append(name[len(f"{self.stack}.{place.layer}.") :])
            self._by_layer = {index: tuple(parts) for index, parts in found.items()}
        return self._by_layer[layer]

    def full_name(self, layer: int, part: str) -> str:
        """Return the name of a layer's tensor, whether or not the model has such a layer."""
        return f"{self.stack}.{layer}.{part}"


def _declared(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for key in keys:
            if isinstance(section.get(key), int):
                return int(section[key])
    return None


def _main_stack(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], label: str) -> tuple[str | None, int]:
    indices: dict[str, set[int]] = defaultdict(set)
    elements: dict[str, int] = defaultdict(int)
    for name, info in infos.items():
        if match := _BLOCK.match(name):
            indices[match["stack"]].add(int(match["index"]))
            elements[match["stack"]] += info.num_elements
    declared = _declared(config, COUNT_KEYS)
    if not indices:
        if declared:
            raise SourceError(f"{label}: config.json declares {declared} layers, but no tensor is named like a layer's")
        return None, 0
    stack = max(indices, key=lambda key: (len(indices[key]) == declared, elements[key], key))
    found = indices[stack]
    # More layers than declared is fine: some models append layers for multi-token prediction.
    wanted = max(max(found) + 1, declared or 0)
    missing = sorted(set(range(wanted)) - found)
    if missing:
        raise SourceError(
            f"{label}: layer {missing[0]} of {wanted} is missing ({stack}.{missing[0]}.*); "
            f"the checkpoint is incomplete, or config.json belongs to another model"
        )
    return stack, wanted


def _place(name: str, stack: str | None) -> Place:
    match = _BLOCK.match(name)
    if match is None:
        return Place(None, _outside(name.split(".")[:-1] or [name]))
    if match["stack"] != stack:
        return Place(None, "other")
    return Place(int(match["index"]), _inside(match["rest"].split(".")))


def _inside(parts: list[str]) -> Module:
    # The first telling part decides: `post_attention_layernorm` is a norm, `self_attn.q_norm` attention.
    for part in map(str.lower, parts):
        if _NORM.search(part):
            return "other"
        if _ATTENTION.search(part):
            return "attention"
        if _MLP.search(part):
            return "mlp"
    return "other"


def _outside(parts: list[str]) -> Module:
    lowered = [part.lower() for part in parts]
    if any(_HEAD.search(part) for part in lowered):
        return "head"
    if any(_EMBEDDING.search(part) for part in lowered):
        return "embeddings"
    return "head" if any(_NORM.search(part) for part in lowered) else "other"


def _input_embedding(infos: Mapping[str, TensorInfo], places: Mapping[str, Place]) -> str | None:
    found = [
        name
        for name, info in infos.items()
        if len(info.shape) == 2
        and places[name].module == "embeddings"
        and any(_INPUT_EMBEDDING.match(part) for part in name.lower().split(".")[-2:])
    ]
    # Beside the token embedding there may be position or type embeddings: the vocabulary is the largest.
    return max(found, key=lambda name: (infos[name].shape[0], name), default=None)
