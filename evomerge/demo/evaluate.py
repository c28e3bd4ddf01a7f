"""Exact match of greedy answers, in one forward pass.

A greedy answer equals the right one if and only if, at every position of the right answer, the right token is the
most likely one given the right tokens before it. So one pass over prompt and answer decides exactly what greedy
generation would score, without generating.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evomerge.demo.skills import Item
from evomerge.demo.tokenizer import BOS, EOS, PAD, VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE = -100
"""The label of a position that is no part of an answer."""


def encode(items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode items, padded on the right.

    Returns:
        ``(tokens, labels)``, both int64 of shape ``(items, length)``; a label is `IGNORE` outside the answer and
        the end-of-sequence token that closes it.

    Raises:
        ValueError: a character is not in the vocabulary.
    """
    rows: list[tuple[list[int], list[int]]] = []
    for item in items:
        unknown = sorted(set(item.prompt + item.answer) - VOCABULARY.keys())
        if unknown:
            raise ValueError(f"{item} holds characters outside the vocabulary: {unknown}.")
        prompt = [BOS, *(VOCABULARY[character] for character in item.prompt)]
        rows.append((prompt, [*(VOCABULARY[character] for character in item.answer), EOS]))
    length = max((len(prompt) + len(answer) for prompt, answer in rows), default=0)
    tokens = torch.full((len(rows), length), PAD, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens[index, :end] = torch.tensor(prompt + answer)
        labels[index, len(prompt) : end] = torch.tensor(answer)
    return tokens, labels


@torch.inference_mode()
def exact_match(
    model: PreTrainedModel, tokens: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 512
) -> torch.Tensor:
    """Say for each encoded item whether the model's greedy answer is exactly right.

    Args:
        model: a causal language model; left in evaluation mode.
        tokens: int64 of shape ``(items, length)``, from `encode`.
        labels: int64 of shape ``(items, length)``, from `encode`.
        batch_size: items in one forward pass.

    Returns:
        Booleans of shape ``(items,)``.
    """
    model.train(mode=False)
    matches: list[torch.Tensor] = []
    for start in range(0, len(tokens), batch_size):
        target = labels[start : start + batch_size, 1:]
        logits = model(tokens[start : start + batch_size, :-1]).logits
        matches.append(((logits.argmax(-1) == target) | (target == IGNORE)).all(dim=1))
    return torch.cat(matches)
