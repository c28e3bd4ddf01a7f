"""Attention heads of sizes that vLLM's CPU kernel does not have, served by zero padding.

The kernel knows some sizes only; a model of another one would fail at its first request. Padding is exact: added
entries of queries and keys are zero and add nothing to their products, added entries of values are zero and cut off
again, and models give the scale of the products themselves.
"""

from __future__ import annotations

from typing import Any

import torch


def padded_size(head_size: int, supported: list[int]) -> int:
    """Return the smallest supported size that holds a head; the head's own where none does.

    Example:
        >>> padded_size(24, [32, 64]), padded_size(64, [32, 64]), padded_size(100, [32, 64])
        (32, 64, 100)
    """
    return min((size for size in supported if size >= head_size), default=head_size)


def pad_heads() -> None:
    """Let vLLM's attention layers of this process pad their heads where the CPU kernel needs it; done once.

    To be called before vLLM builds a model.
    """
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    if not current_platform.is_cpu() or hasattr(Attention, "evomerge_head_size"):
        return
    supported = CPUAttentionBackend.get_supported_head_sizes()
    layer: Any = Attention
    build, run = layer.__init__, layer.forward

    def init(self: Any, num_heads: int, head_size: int, *args: Any, **options: Any) -> None:
        own = options.get("head_size_v") in (None, head_size)  # values of another size are for other kernels
        build(self, num_heads, padded_size(head_size, supported) if own else head_size, *args, **options)
        self.evomerge_head_size = head_size

    def forward(self: Any, query: torch.Tensor, key: Any, value: Any, output_shape: Any = None) -> torch.Tensor:
        size, added = self.evomerge_head_size, self.head_size - self.evomerge_head_size
        if not added:
            result: torch.Tensor = run(self, query, key, value, output_shape)
            return result

        def pad(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:  # layers that share the keys and values of another one
                return None
            heads = tensor.reshape(tensor.shape[0], -1, size)
            return torch.nn.functional.pad(heads, (0, added)).flatten(1)

        wide: torch.Tensor = run(self, pad(query), pad(key), pad(value))
        return wide.reshape(wide.shape[0], -1, self.head_size)[..., :size].reshape(query.shape)

    layer.evomerge_head_size = 0
    layer.__init__ = init
    layer.forward = forward
