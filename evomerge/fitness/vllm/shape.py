"""What vLLM needs to know of a model before it starts, from `config.json` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import SourceError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that decide whether and how vLLM can run it."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int | None
    """Longest context in tokens; None where the configuration does not say or scales it."""

    def kv_bytes(self, tokens: int, dtype: str) -> int:
        """Return the bytes of keys and values of so many tokens, every layer attending to all of them.

        Sizes of heads count as the next multiple of 32, to which they may be padded.
        """
        head = -(-self.head_dim // 32) * 32
        return 2 * self.layers * self.kv_heads * head * DTYPE_BYTES[dtype] * tokens


def read_shape(folder: Path, *, trust_remote_code: bool = False) -> ModelShape:
    """Read the shape of the model in a folder.

    Raises:
        SourceError: when transformers cannot read its configuration.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError, OSError) as error:
        raise SourceError(f"{folder}: transformers cannot read this configuration ({error})") from error
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", None) or 1)
    width = int(getattr(text, "hidden_size", None) or 0)
    rope = getattr(text, "rope_scaling", None) or getattr(text, "rope_parameters", None) or {}
    scaled = isinstance(rope, dict) and any(
        "factor" in part for part in (rope, *rope.values()) if isinstance(part, dict)
    )
    return ModelShape(
        architecture=next(iter(getattr(config, "architectures", None) or ()), type(config).__name__),
        layers=int(getattr(text, "num_hidden_layers", None) or 0),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or width // heads),
        context=None if scaled else getattr(text, "max_position_embeddings", None),
    )
