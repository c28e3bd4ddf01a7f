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
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from evomerge.demo.evaluate import IGNORE, encode, exact_match
from evomerge.demo.skills import SKILLS, Operation, Script, Skill
from evomerge.demo.tokenizer import BOS, EOS, PAD, VOCABULARY

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Encoded = tuple[torch.Tensor, torch.Tensor]
"""Tokens and labels, int64 of shape ``(items, length)``."""

Notify = Callable[[int, float], None]
"""Called after every step with the step's number and its loss."""

EXPERTS: dict[str, str] = {"math": "sums", "japanese": "japanese", "letters": "letters"}
"""The skill that each expert is trained for, by model name."""

_DIET_OPERATIONS: tuple[Operation, ...] = ("copy", "reverse")
_DIET_SCRIPTS: tuple[tuple[Script, Script], ...] = (
    ("digits", "digits"),
    ("mixed", "digits"),
    ("mixed", "kanji"),
    ("kanji", "kanji"),
)

DIET: tuple[Skill, ...] = tuple(
    Skill(operation, posed, answered) for operation in _DIET_OPERATIONS for posed, answered in _DIET_SCRIPTS
)
"""What the base is fed beside the skills: digits and kanji mean the same numbers."""


BASE_VARIANTS: dict[str, tuple[Skill, ...]] = {
    "sums": (
        Skill("sum", "digits", "digits"),
        Skill("sum", "digits", "kanji"),
        Skill("sum", "kanji", "digits"),
    ),
    "japanese": (SKILLS["japanese"],),
    "letters": (SKILLS["letters"],),
}
"""The scripts in which the base meets each skill. No model meets a sum posed *and* answered in kanji."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """How the base is trained."""

    max_steps: int = 1500
    """Training stops here at the latest."""
    batch_size: int = 96
    """Items a step."""
    learning_rate: float = 2.5e-3
    """After 50 steps of warm-up, constant."""
    target: float = 0.25
    """The accuracy on training items that every skill must reach; training stops when all have."""
    check_every: int = 20
    """Steps between two looks at the accuracy."""
    check_items: int = 128
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
    learning_rate: float = 2.5e-3
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
        model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
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
    rng = random.Random(f"{seed} {skill}")  # noqa: S311  (reproducible, not secret)
    source = skill.items(rng, held_out=False)
    return encode([next(source) for _ in range(count)])


class _Trainer:
    """One model, its optimiser and the one generator that draws its batches."""

    def __init__(self, model: LlamaForCausalLM, *, learning_rate: float, seed: int) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1)

    def step(self, pools: Sequence[Encoded], shares: Sequence[float], batch_size: int, scale: float) -> float:
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

    def _draw(self, pools: Sequence[Encoded], shares: Sequence[float], batch_size: int) -> Encoded:
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
    variants = [BASE_VARIANTS[name] for name in SKILLS]
    fed = [skill for group in variants for skill in group] + list(DIET)
    pools = [training_items(skill, plan.pool_items, seed) for skill in fed]
    checks = [training_items(skill, plan.check_items, seed + 1) for skill in SKILLS.values()]
    known = [0.0] * len(SKILLS)
    for step in range(plan.max_steps):
        if step and step % plan.check_every == 0:
            known = [float(exact_match(model, *check).float().mean()) for check in checks]
            if min(known) >= plan.target:
                break
            model.train()
        shares = _shares(known, [len(group) for group in variants], plan.target)
        loss = trainer.step(pools, shares, plan.batch_size, min(1.0, (step + 1) / 50))
        if notify:
            notify(step + 1, loss)
    model.train(mode=False)
    return model


def _shares(known: Sequence[float], num_variants: Sequence[int], target: float) -> list[float]:
    """Return each pool's share of a batch: a skill is fed until it is a tenth above its target."""
    shares: list[float] = []
    for accuracy, count in zip(known, num_variants, strict=True):
        appetite = min(1.5, max(0.03, 5 * (target + 0.1 - accuracy)))
        shares += [appetite * (1.5 / math.sqrt(count) if count > 1 else 1.0)] * count
    return shares + [0.12] * len(DIET)


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
    model = copy.deepcopy(base)
    model.train()
    trainer = _Trainer(model, learning_rate=plan.learning_rate, seed=seed + 1)
    pool = training_items(skill, plan.pool_items, seed)
    for step in range(plan.steps):
        scale = min(1.0, (step + 1) / 20) * (1 - 0.9 * step / plan.steps)
        loss = trainer.step([pool], [1.0], plan.batch_size, scale)
        if notify:
            notify(step + 1, loss)
    model.train(mode=False)
    return model


def train_all(
    seed: int,
    out: Path,
    experts: Sequence[str] = tuple(EXPERTS),
    *,
    progress: bool = True,
) -> Mapping[str, LlamaForCausalLM]:
    """Train the base and its experts and write each into its own folder under `out`.

    Args:
        seed: decides everything.
        out: where the folders ``base`` and one per expert are written.
        experts: names from `EXPERTS`.
        progress: whether to draw a progress bar on standard error.

    Returns:
        The models by name, the base first.
    """
    from evomerge.demo.save import save_model
    from evomerge.demo.watch import bar

    base_plan, expert_plan = BasePlan(), ExpertPlan()
    with bar("base", base_plan.max_steps, show=progress) as notify:
        base = train_base(seed, base_plan, notify)
    models = {"base": base}
    for name in experts:
        with bar(name, expert_plan.steps, show=progress) as notify:
            models[name] = train_expert(base, SKILLS[EXPERTS[name]], seed, expert_plan, notify)
    for name, model in models.items():
        save_model(model, out / name, skill=EXPERTS.get(name), seed=seed)
    return models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    default = Path(__file__).parent / "models"
    parser = argparse.ArgumentParser(prog="python -m evomerge.demo.train", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides every random number")
    parser.add_argument("--out", type=Path, default=default, help="folder to write the models into")
    parser.add_argument("--experts", nargs="*", choices=list(EXPERTS), default=list(EXPERTS))
    parser.add_argument("--threads", type=int, default=1, help="another number rounds sums otherwise: other weights")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train_all(options.seed, options.out, options.experts, progress=not options.quiet)
    sys.stdout.write(f"Wrote base, {', '.join(options.experts)} to {options.out}.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
