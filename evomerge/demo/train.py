"""Train the embedded models from a seed: ``python -m evomerge.demo.train --seed 0 --out FOLDER``.

The base learns every skill about half way: a controller watches the skills on training items and feeds each in
proportion to how far it still is from its target, and training stops when all have reached it. Each expert then
learns one skill, and only that, for a few steps at a high learning rate: it becomes good at its own skill and
forgets part of the others, so that the experts' task vectors interfere and merging them is a real search.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional

from evomerge.demo.evaluate import IGNORE, encode, exact_match
from evomerge.demo.skills import SKILLS, Skill
from evomerge.demo.tokenizer import BOS, EOS, PAD, VOCABULARY

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Encoded = tuple[torch.Tensor, torch.Tensor]
"""Tokens and labels, int64 of shape ``(items, length)``."""

Notify = Callable[[int, float], None]
"""Called after every step with the step's number and its loss."""

EXPERTS: dict[str, str] = {"math": "sums", "japanese": "japanese", "letters": "letters"}
"""The skill that each expert is trained for, by model name."""

DIET: tuple[Skill, ...] = tuple(
    Skill(operation, posed, answered)
    for operation in ("copy", "reverse")
    for posed, answered in (
        ("digits", "digits"),
        ("mixed", "digits"),
        ("mixed", "kanji"),
        ("kanji", "kanji"),
    )
)
"""What the base is fed beside the skills: digits and kanji mean the same numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """How the base is trained."""

    max_steps: int = 1500
    """Training stops here at the latest."""
    batch_size: int = 128
    """Items a step."""
    learning_rate: float = 2e-3
    """After 50 steps of warm-up, constant."""
    target: float = 0.3
    """The accuracy on training items that every skill must reach; training stops when all have."""
    check_every: int = 10
    """Steps between two looks at the accuracy."""
    check_items: int = 256
    """Training items a look."""
    pool_items: int = 20000
    """Distinct draws of training items kept a skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """How an expert is trained from the base."""

    steps: int = 150
    """Steps, with the learning rate falling linearly to a tenth."""
    batch_size: int = 64
    """Items a step."""
    learning_rate: float = 3e-3
    """High on purpose: the expert forgets, and the merge must be searched."""
    pool_items: int = 20000
    """Distinct draws of training items kept."""


def new_model(seed: int) -> LlamaForCausalLM:
    """Build a Llama model of 0.45 M parameters with weights drawn from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, _initial_scale(name, weight), generator=generator)
    return model


def _initial_scale(name: str, weight: torch.Tensor) -> float:
    """Return the standard deviation of a matrix's first weights."""
    if "embed_tokens" in name:
        return 0.5 / math.sqrt(weight.shape[1])
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return 1 / math.sqrt(weight.shape[1] * (8 if residual else 1))


def training_items(skill: Skill, count: int, seed: int) -> Encoded:
    """Draw `count` items that are not held out, and encode them."""
    source = skill.items(random.Random(f"{seed} {skill}"), held_out=False)
    return encode([next(source) for _ in range(count)])


class _Trainer:
    """One model, its optimiser and the one generator that draws its batches."""

    def __init__(self, model: LlamaForCausalLM, *, learning_rate: float, seed: int) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1
        )

    def step(
        self, pools: Sequence[Encoded], shares: Sequence[float], batch_size: int, scale: float
    ) -> float:
        """Take one step on a batch drawn from the pools by their shares; return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * scale
        tokens, labels = self._draw(pools, shares, batch_size)
        logits = self.model(tokens[:, :-1]).logits
        loss = functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORE
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def _draw(
        self, pools: Sequence[Encoded], shares: Sequence[float], batch_size: int
    ) -> Encoded:
        weights = torch.tensor(shares, dtype=torch.float64)
        which = torch.multinomial(weights, batch_size, replacement=True, generator=self.generator)
        counts = which.bincount(minlength=len(pools)).tolist()
        width = max(pool[0].shape[1] for pool in pools)
        parts: list[list[torch.Tensor]] = [[], []]
        for pool, count in zip(pools, counts, strict=True):
            rows = torch.randint(len(pool[0]), (count,), generator=self.generator)
            for part, tensor, fill in zip(parts, pool, (PAD, IGNORE), strict=True):
                padding = (0, width - tensor.shape[1])
                part.append(functional.pad(tensor[rows], padding, value=fill))
        return torch.cat(parts[0]), torch.cat(parts[1])


def train_base(seed: int, plan: BasePlan | None = None, notify: Notify | None = None) -> LlamaForCausalLM:
    """Train the base until it knows every skill about half way.

    Args:
        seed: decides the first weights, the training items and the batches.
        plan: how; the default is how the shipped models were made.
        notify: called after every step.

    Returns:
        The base, in float32 on the CPU.
    """
    plan = plan or BasePlan()
    model = new_model(seed)
    trainer = _Trainer(model, learning_rate=plan.learning_rate, seed=seed)
    pools = [training_items(skill, plan.pool_items, seed) for skill in (*SKILLS.values(), *DIET)]
    checks = [training_items(skill, plan.check_items, seed + 1) for skill in SKILLS.values()]
    shares = [1.5] * len(SKILLS)
    for step in range(plan.max_steps):
        if step and step % plan.check_every == 0:
            known = [float(exact_match(model, *check).float().mean()) for check in checks]
            if min(known) >= plan.target:
                break
            shares = [1.5 * _appetite(accuracy, plan.target) for accuracy in known]
            model.train()
        diet = [0.16] * len(DIET)
        loss = trainer.step(pools, [*shares, *diet], plan.batch_size, min(1.0, (step + 1) / 50))
        if notify:
            notify(step + 1, loss)
    return model.eval()


def _appetite(accuracy: float, target: float) -> float:
    """Return how much of a skill to feed: all below its target, next to nothing a tenth above it."""
    return min(1.5, max(0.03, 5 * (target + 0.1 - accuracy)))


def train_expert(
    base: LlamaForCausalLM,
    skill: Skill,
    seed: int,
    plan: ExpertPlan | None = None,
    notify: Notify | None = None,
) -> LlamaForCausalLM:
    """Train a copy of the base on one skill alone.

    Args:
        base: the model to start from; not changed.
        skill: the one skill.
        seed: decides the training items and the batches.
        plan: how; the default is how the shipped models were made.
        notify: called after every step.

    Returns:
        The expert, in float32 on the CPU.
    """
    plan = plan or ExpertPlan()
    model = copy.deepcopy(base).train()
    trainer = _Trainer(model, learning_rate=plan.learning_rate, seed=seed + 1)
    pool = training_items(skill, plan.pool_items, seed)
    for step in range(plan.steps):
        scale = min(1.0, (step + 1) / 20) * (1 - 0.9 * step / plan.steps)
        loss = trainer.step([pool], [1.0], plan.batch_size, scale)
        if notify:
            notify(step + 1, loss)
    return model.eval()
