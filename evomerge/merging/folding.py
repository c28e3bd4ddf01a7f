"""The fold: scales of the stream become ordinary weights.

Notation. h_t is the stream that enters output layer t after its scale s_t; S_t = s_1 ⋯ s_t; u_t = h_t / S_t is the
stream of the folded model, which is never scaled. A block adds a branch, h' = h + f(h), so that
u' = u + f(S u) / S, and what is left is to write u -> f(S u) / S as a block:

* a branch that reads through a norm sees norm(S u) = sign(S) norm(u), up to the norm's epsilon: the norm's weight
  takes the sign;
* a branch that reads the stream as it is has the weights of its first projections multiplied by S, which is exact;
* what the branch adds is divided by S: the weight and bias of its last projection or, where a norm comes after that,
  of this norm.

The final norm takes the sign of the last S; the embeddings and the head stay as they are, tied or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.checkpoints import Blocks
from evomerge.merging.routes import Hop, Route


@dataclass(frozen=True, slots=True)
class Rescale:
    """Multiplies what a stored tensor stands for, which may be the tensor plus an offset (Gemma's norms)."""

    factor: float
    offset: float = 0.0

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return float64, so that the caller rounds once: 1 + w cancels against the offset in anything less."""
        return (tensor.to(torch.float64) + self.offset) * self.factor - self.offset


def fold_in_layer(hop: Hop, part: str, blocks: Blocks) -> Rescale | None:
    """Return what the fold does to a tensor of an output layer; None: nothing.

    Args:
        hop: the output layer.
        part: name of the tensor within its layer.
        blocks: roles of the tensors in the source that leads the hop.
    """
    match blocks.role(part):
        case "writer":
            return _rescale(0.0 if hop.is_idle else 1 / hop.scale)
        case "branch_norm":
            offset = blocks.offset if part.endswith("weight") else 0.0
            return _rescale(0.0 if hop.is_idle else 1 / hop.scale, offset)
        case "reader_norm":
            return _rescale(math.copysign(1.0, hop.scale), blocks.offset)
        case "raw_reader":
            return _rescale(hop.scale)
        case "inner":
            return None


def fold_outside(route: Route, name: str, blocks: Blocks) -> Rescale | None:
    """Return what the fold does to a tensor outside of the layers; None: nothing."""
    if name != blocks.final_norm:
        return None
    return _rescale(math.copysign(1.0, route.hops[-1].scale), blocks.offset)


def _rescale(factor: float, offset: float = 0.0) -> Rescale | None:
    return None if factor == 1 else Rescale(factor, offset)
