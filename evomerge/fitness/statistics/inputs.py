"""Gram matrices of what goes into the linear layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GramSum:
    """G = Σ_x Σ_t x_t x_tᵀ / Σ_x |x| of each linear layer, one matrix for layers that read the same tensor."""

    def __init__(self, model: PreTrainedModel, names: Collection[str]) -> None:
        """Start with nothing.

        Args:
            model: in evaluation mode.
            names: of its parameters that may be measured; those of linear layers are.

        Raises:
            SourceError: when none is one of a linear layer.
        """
        from transformers.pytorch_utils import Conv1D

        self._model = model
        self._last: tuple[Tensor, str] | None = None
        self.sums: dict[str, Tensor] = {}
        """Parameter name -> sum of outer products, float32 of shape (inputs, inputs)."""
        self.tokens: dict[str, int] = {}
        """Parameter name -> number of tokens."""
        self.shared: dict[str, str] = {}
        """Parameter name -> the parameter before it that reads the same tensor."""
        layers = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and f"{name}.weight" in names
        }
        if not layers:
            raise SourceError(
                "this model has no linear layers of its own, so that there are no Gram matrices of inputs"
            )
        for name, module in layers.items():
            module.register_forward_pre_hook(self._hook(name))

    def add(self, index: int, tokens: Tensor) -> None:  # noqa: ARG002  same form as of a Fisher
        """Add one example.

        Args:
            index: its number.
            tokens: int64 of shape (length,).
        """
        with torch.no_grad():
            self._model(tokens[None])
        self._last = None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen: Tensor = inputs[0]
            # Held until the next layer was seen: no other tensor can be the same object.
            if self._last is not None and self._last[0] is seen and name not in self.sums:
                self.shared[name] = self._last[1]
            elif name not in self.shared:
                self._last = seen, name
                self._add(name, seen.reshape(-1, seen.shape[-1]).float())
            else:
                raise SourceError(
                    f"{name!r} does not read what {self.shared[name]!r} reads any more; it cannot be measured"
                )

        return see

    def _add(self, name: str, rows: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            self.tokens[name] = 0
        self.sums[name].addmm_(rows.T, rows)
        self.tokens[name] += len(rows)

    def means(self) -> dict[str, Tensor]:
        """Return the mean per token of each matrix; 0 where a layer saw no token."""
        return {name: total / max(1, self.tokens[name]) for name, total in self.sums.items()}

    def facts(self, means: Mapping[str, Tensor]) -> dict[str, float]:  # noqa: ARG002
        """Return nothing: there is no common scale."""
        return {}
