"""LiNeS on tensors: θ_0 + s·(merged - θ_0), and the α that a whole model suggests.

Legend: θ_0 base, τ_i = θ_i - θ_0 of the N sources that take part, τ_m = merged - θ_0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evomerge.operators.kernels.inputs import Flat, spans, total
from evomerge.operators.kernels.scratch import Scratch


def drawn_in(merged: Tensor, base: Tensor, share: float, dtype: torch.dtype) -> Tensor:
    """Return θ_0 + s·(merged - θ_0), computed in float32 and rounded once.

    Args:
        merged: float32.
        base: θ_0 as it is stored; of the same shape.
        share: s.
        dtype: of the result.
    """
    out = torch.empty(merged.numel(), dtype=dtype, device=merged.device)
    values, origin, scratch = Flat(merged), Flat(base), Scratch(merged.device)
    for span in scratch.over(spans(out.numel(), out.device)):
        root = origin.read(span, scratch)
        delta = values.minus(root, span, scratch)
        out[span] = torch.add(root, delta, alpha=share, out=delta)
    return out.view(merged.shape)


def norms(merged: Tensor, base: Tensor, tuned: list[Tensor]) -> tuple[float, float]:
    """Return ‖Σ τ_i‖₁ and ‖τ_m‖₁ of one tensor.

    Args:
        merged: float32, or as a source stores it.
        base: θ_0 as it is stored, as the next ones are.
        tuned: θ_i, in an order that does not depend on that of the sources.
    """
    values, origin, sources = Flat(merged), Flat(base), [Flat(tensor) for tensor in tuned]
    scratch = Scratch(merged.device)
    together = change = 0.0
    for span in scratch.over(spans(merged.numel(), merged.device)):
        root = origin.read(span, scratch)
        change += total(values.minus(root, span, scratch).abs_())
        if sources:
            summed = sources[0].minus(root, span, scratch)
            for source in sources[1:]:
                summed = summed.add_(source.minus(root, span, scratch))
            together += total(summed.abs_())
    return together, change


def suggested(parts: Iterator[tuple[float, float]], num_sources: int) -> float:
    """Return α = (‖Σ τ_i‖₁ / ‖τ_m‖₁) / N from the norms of all tensors; 0 where the merge is the base."""
    together = change = 0.0
    for one, other in parts:
        together += one
        change += other
    return together / change / num_sources if change > 0 else 0.0
