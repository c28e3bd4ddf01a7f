"""What each tensor of a block does to the residual stream: reads it, writes to it, normalises it.

The names of a block's tensors tell it, once the architecture is known to be built as its names say; that is
looked up in `FAMILIES`, and each of these is held against a hop-by-hop reference in the tests. A model outside
of the table, a tensor of no known name, or a setting under which a block is built otherwise is refused: a
wrong guess here would give a model that is wrong without a sign of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.checkpoints.compatible import is_buffer
from evomerge.checkpoints.types import ModelSource
from evomerge.errors import NotBuiltError

Role = Literal["reader_norm", "branch_norm", "writer", "raw_reader", "inner"]
"""Of a tensor in a block:

* `reader_norm`: weight of a norm through which a branch reads the stream;
* `branch_norm`: weight or bias of a norm at a branch's end, added to the stream;
* `writer`: weight or bias of a projection added to the stream;
* `raw_reader`: weight of a projection that reads the stream with no norm before it;
* `inner`: everything that the scale of the stream does not reach.
"""
Norm = Literal["reads", "writes"]

_PRE: Mapping[str, Norm] = {"input_layernorm": "reads", "post_attention_layernorm": "reads"}
_POST: Mapping[str, Norm] = {"post_attention_layernorm": "writes", "post_feedforward_layernorm": "writes"}
_SANDWICH: Mapping[str, Norm] = {"input_layernorm": "reads", "pre_feedforward_layernorm": "reads", **_POST}
_PARALLEL: Mapping[str, Norm] = {"input_layernorm": "reads"}
_GPT: Mapping[str, Norm] = {"ln_1": "reads", "ln_2": "reads"}
_STATE_SPACE: Mapping[str, Norm] = {"norm": "reads"}


@dataclass(frozen=True, slots=True)
class Family:
    """How the blocks of some architectures are built."""

    norms: Mapping[str, Norm]
    """The norms that may stand between stream and branches, by their names in the block."""
    offset: float = 0.0
    """What a norm adds to its stored weight before it multiplies by it (Gemma stores the weight less one)."""
    bare: bool = False
    """Whether the norms have no weights at all."""
    refused: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """Settings of `config.json` under which the blocks are built otherwise."""


_PLAIN = Family(_PRE)
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3", "seed_oss", "starcoder2", "stablelm"),
        _PLAIN,
    ),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe"), _PLAIN),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _PLAIN),
    "gpt_neox": _PLAIN,
    "bloom": Family(_PRE, refused={"apply_residual_connection_post_layernorm": bool}),
    "falcon": Family({**_PRE, "ln_attn": "reads", "ln_mlp": "reads"}),
    **dict.fromkeys(("phi", "cohere", "cohere2"), Family(_PARALLEL)),
    "gpt2": Family(_GPT, refused={"scale_attn_by_inverse_layer_idx": bool, "add_cross_attention": bool}),
    "gptj": Family(_GPT),
    "gemma": Family(_PRE, offset=1.0),
    "nemotron": Family(_PRE, offset=1.0),
    **dict.fromkeys(("gemma2", "gemma3_text"), Family(_SANDWICH, offset=1.0)),
    "glm": Family(_PRE),
    "glm4": Family({**_PRE, "post_self_attn_layernorm": "writes", "post_mlp_layernorm": "writes"}),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), Family(_POST)),
    "olmo": Family({}, bare=True),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), Family(_STATE_SPACE)),
}
"""Architectures whose blocks are understood, by `model_type`."""

_WRITERS = re.compile(r"(o|out|c|down)_proj|down_proj_bias|dense(_4h_to_h)?|fc2|fc_out|w2|output_linear")
_READERS = re.compile(
    r"[qkv]_proj|qkv_proj|query_key_value|c_attn|q_a_proj|kv_a_proj_with_mqa|in_proj|input_linear|"
    r"(gate|up|gate_up)_proj|gate_up_proj_bias|dense_h_to_4h|fc1|fc_in|c_fc|w[13]|(shared_expert_)?gate|router"
)
_INNER = re.compile(
    r"[qk]_(layer)?norm|norms|(q|kv)_a_layernorm|(q|kv)_b_proj|sinks|layer|e_score_correction_bias|"
    r"A_log|D|dt_bias|conv1d|(dt|x)_proj|norm"
)
_FINAL_NORMS = frozenset({"norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm", "final_norm"})


class Blocks:
    """The roles of a model's tensors."""

    def __init__(self, model: ModelSource, label: str) -> None:
        """Understand the blocks of a model.

        Args:
            model: any opened model.
            label: what errors call it.

        Raises:
            NotBuiltError: when the architecture is not among `FAMILIES`, or a block is not built as they are.
        """
        section = text_section(model.config)
        self.model_type = str(section.get("model_type"))
        family = FAMILIES.get(self.model_type)
        if family is None:
            raise NotBuiltError(
                f"source {label!r}: how blocks of the architecture {self.model_type!r} read and write their stream "
                f"is not known, so its layers can be neither rearranged nor scaled; merge them one to one"
            )
        for key, is_refused in family.refused.items():
            if is_refused(section.get(key)):
                raise NotBuiltError(
                    f"source {label!r}: blocks of {self.model_type!r} with {key} = {section[key]!r} in config.json "
                    f"can be neither rearranged nor scaled exactly; merge the layers one to one"
                )
        self._family = family
        self._raw = bool(family.norms) and "reads" not in family.norms.values()
        self._label = label
        self._roles: dict[str, Role] = {}
        for layer in range(model.layout.num_layers):
            self._read(model, layer)
        self.final_norm = self._final_norm(model)
        """Name of the final norm's weight; None where the norms have no weights."""

    @property
    def offset(self) -> float:
        """What the norms add to a stored weight before they multiply by it."""
        return self._family.offset

    @property
    def bare(self) -> bool:
        """Whether the norms have no weights, so that a stream cannot change its sign."""
        return self._family.bare

    def role(self, part: str) -> Role:
        """Return the role of a tensor, by its name within its layer."""
        return self._roles[part]

    def _read(self, model: ModelSource, layer: int) -> None:
        norms = set()
        parts = model.layout.parts(layer)
        for part in parts:
            pieces = part.split(".")
            if len(pieces) == 2 and pieces[0] in self._family.norms:
                norms.add(pieces[0])
            if part not in self._roles:
                name = model.layout.full_name(layer, part)
                buffer = is_buffer(name, model.info(name))
                self._roles[part] = "inner" if buffer else self._role(name, pieces)
        if not self._is_whole(norms, {self._roles[part] for part in parts}):
            raise NotBuiltError(
                f"source {self._label!r}: layer {layer} is not a block of {self.model_type!r} as evomerge knows it "
                f"(norms: {', '.join(sorted(norms)) or 'none'}), so it can be neither rearranged nor scaled"
            )

    def _is_whole(self, norms: set[str], roles: set[Role]) -> bool:
        if "writes" in self._family.norms.values():
            return norms == set(self._family.norms)
        return "writer" in roles and (bool(norms) or self._family.bare)

    def _role(self, name: str, pieces: list[str]) -> Role:
        kind = pieces[-1]
        of_module = kind in ("weight", "bias") and len(pieces) > 1
        module = next(piece for piece in reversed(pieces[:-1] if of_module else pieces) if not piece.isdigit())
        if len(pieces) == 2 and module in self._family.norms:
            if self._family.norms[module] == "writes":
                return "branch_norm"
            # LN(-x)·w + b = LN(x)·(-w) + b: a bias does not take the stream's sign.
            return "reader_norm" if kind == "weight" else "inner"
        if _WRITERS.fullmatch(module):
            # With a norm at the end of every branch, it is that norm which writes.
            return "inner" if "writes" in self._family.norms.values() else "writer"
        if _READERS.fullmatch(module):
            return "raw_reader" if self._raw and kind != "bias" else "inner"
        if _INNER.fullmatch(module) and not (of_module and len(pieces) == 2):
            return "inner"
        raise NotBuiltError(
            f"source {self._label!r}: what tensor {name!r} does in a block of {self.model_type!r} is not known, "
            f"so its layers can be neither rearranged nor scaled; merge them one to one"
        )

    def _final_norm(self, model: ModelSource) -> str | None:
        prefix = (model.layout.stack or "").rpartition(".")[0]
        names = {f"{prefix}.{norm}.weight".removeprefix(".") for norm in _FINAL_NORMS}
        found = [name for name in model.names() if name in names]
        if self._family.bare and not found:
            return None
        if len(found) != 1:
            raise NotBuiltError(
                f"source {self._label!r}: one final norm was expected behind the layers of {self.model_type!r}, found "
                f"{', '.join(found) or 'none'}; its layers can be neither rearranged nor scaled"
            )
        return found[0]


def text_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that is about the language model: `text_config`, else all of it."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config
