"""The diagonal Fisher information, from the gradient of each example by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from evomerge.checkpoints.statistics import importance_scales
from evomerge.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Labels = Literal["model", "text"]
"""What is to be predicted: tokens drawn from the model's own distribution, or those of the text."""
_POSITIONS = 64
"""Positions whose distributions are held as float64 at a time."""


class FisherSum:
    """F = Σ_x (∂ log p(y_x | x) / ∂θ)² / Σ_x |x|: the square of each example's gradient, a mean per predicted token.

    With labels of the `model`, y is drawn at each position from the model's distribution given the text before it.
    Draws at two positions are independent and the expected gradient of each is 0, so the square of their sum is an
    unbiased estimate of the Fisher's diagonal. With labels of the `text` this is the empirical Fisher.
    """

    def __init__(self, model: PreTrainedModel, names: Collection[str], *, labels: Labels, seed: int) -> None:
        """Start with nothing.

        Args:
            model: in evaluation mode.
            names: of its parameters that are measured.
            labels: what is to be predicted.
            seed: of the draws.
        """
        state: dict[str, Any] = model.state_dict(keep_vars=True)
        self._parameters = {name: state[name] for name in names}
        for parameter in self._parameters.values():
            parameter.requires_grad_(requires_grad=True)
        self._model, self._labels, self._seed = model, labels, seed
        self.sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for name, parameter in self._parameters.items()
        }
        """Parameter name -> sum of squared gradients, float32."""
        self.tokens = dict.fromkeys(names, 0)
        """Parameter name -> number of predicted tokens."""
        self.shared: dict[str, str] = {}

    def add(self, index: int, tokens: Tensor) -> None:
        """Add one example.

        Args:
            index: its number, by which labels are drawn.
            tokens: int64 of shape (length,), length >= 2.
        """
        logits = self._model(tokens[None]).logits[0, :-1].float()
        labels = tokens[1:] if self._labels == "text" else self._drawn(logits.detach(), index)
        likelihood = logits.log_softmax(-1).gather(-1, labels[:, None]).sum()
        gradients = torch.autograd.grad(likelihood, list(self._parameters.values()), allow_unused=True)
        for name, gradient in zip(self._parameters, gradients, strict=True):
            self.tokens[name] += len(labels)
            if gradient is not None:
                self.sums[name].addcmul_(gradient.float(), gradient.float())

    def _drawn(self, logits: Tensor, index: int) -> Tensor:
        numbers = torch.from_numpy(generator(self._seed, "fisher", index).random(len(logits)))
        return draw_labels(logits, numbers.to(logits.device))

    def means(self) -> dict[str, Tensor]:
        """Return the mean per token of each parameter."""
        return {name: total / self.tokens[name] for name, total in self.sums.items()}

    def facts(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what the file's header says of them."""
        return importance_scales(means.values())


def draw_labels(logits: Tensor, numbers: Tensor) -> Tensor:
    """Draw one token at each position by inverting the distribution function.

    Args:
        logits: float32 of shape (positions, vocabulary).
        numbers: float64 of shape (positions,), uniform in [0, 1).

    Returns:
        int64 of shape (positions,).
    """
    labels = []
    for start in range(0, len(logits), _POSITIONS):
        sums = logits[start : start + _POSITIONS].double().softmax(-1).cumsum(-1)
        wanted = numbers[start : start + _POSITIONS, None] * sums[:, -1:]
        labels.append(torch.searchsorted(sums, wanted, right=True)[:, 0].clamp(max=logits.shape[1] - 1))
    return torch.cat(labels)
