"""Fingerprints of tensors as they were loaded: cheap, exact in the bits that they look at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 1024
"""Elements that a fingerprint looks at, evenly spread."""


def sample(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a fingerprint looks at of a tensor, as it is in the dtype of the model; the tensor may then go."""
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step].to(dtype, copy=True)


class Fingerprints:
    """Fingerprints of the tensors of one load; they leave the device together, when they are asked for."""

    def __init__(self) -> None:
        self._samples: dict[str, Tensor] = {}

    def add(self, name: str, looked_at: Tensor) -> None:
        """Take what `sample` gives of a tensor."""
        self._samples[name] = looked_at

    def values(self) -> Mapping[str, str]:
        """Return the fingerprint (hex) of each tensor: of its shape's size, dtype and sampled bits."""
        return {name: _digest(sample) for name, sample in self._on_host().items()}

    def _on_host(self) -> dict[str, Tensor]:
        flat = [sample.view(torch.uint8) if sample.numel() else sample for sample in self._samples.values()]
        if not flat or flat[0].device.type == "cpu":
            return dict(self._samples)
        everything = torch.cat(flat).cpu()  # one transfer, not one a tensor
        parts = torch.split(everything, [part.numel() for part in flat])
        return dict(zip(self._samples, parts, strict=True))


def _digest(sample: Tensor) -> str:
    data = sample.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
