"""The skills of the embedded models: prompts, answers, and which prompts training may never see.

Every prompt is a short string of single characters that ends in ``=`` (answer in digits or letters)
or in ``は`` (answer in kanji numerals):

======================  ====================================  ================  =========
skill                   what is asked                         prompt            answer
======================  ====================================  ================  =========
sums                    the sum of two two-digit numbers      ``37+48=``        ``85``
japanese                kanji numerals in ascending order     ``<五二九一四は``    ``一二四五九``
letters                 each letter once, in order            ``%fadafc=``      ``fadc``
copy, reverse           the base model's general diet         ``~52914=``       ``41925``
======================  ====================================  ================  =========

A prompt is *held out* by the hash of its key, in every script at once: a sum that is held out in digits is held
out in kanji too, and with its operands exchanged.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

DIGITS = "0123456789"
KANJI = "〇一二三四五六七八九"
LETTERS = "abcdefghij"
OPERATORS = "+=は<%@~"
CHARACTERS = DIGITS + KANJI + LETTERS + OPERATORS
"""Every character that a prompt or an answer may hold, in vocabulary order."""

HELD_OUT_FRACTION = 0.15
"""The share of all prompts that training never sees, drawn by hash."""

Script = Literal["digits", "kanji", "letters", "mixed"]
Operation = Literal["sum", "sort", "distinct", "copy", "reverse"]

_SCRIPTS: dict[str, str] = {"digits": DIGITS, "kanji": KANJI, "letters": LETTERS}


@dataclass(frozen=True, slots=True)
class Item:
    """One question and its one right answer."""

    prompt: str
    """What the model reads; ends in ``=`` or ``は``."""
    answer: str
    """What the model must write before its end-of-sequence token."""
    key: str
    """What decides whether the item is held out: equal for questions that share an answer by symmetry."""

    @property
    def held_out(self) -> bool:
        """Whether training must never see this item."""
        return hashlib.sha256(self.key.encode()).digest()[0] < HELD_OUT_FRACTION * 256


@dataclass(frozen=True, slots=True)
class Skill:
    """An operation, the script its question is posed in, and the script of its answer."""

    operation: Operation
    posed: Script
    answered: Script

    def draw(self, rng: random.Random) -> Item:
        """Draw one item; the generator is the only source of randomness."""
        return _DRAW[self.operation](self, rng)

    def items(self, rng: random.Random, *, held_out: bool) -> Iterator[Item]:
        """Yield items from one side of the hold-out for ever (with repeats)."""
        while True:
            item = self.draw(rng)
            if item.held_out is held_out:
                yield item

    def pose(self, values: list[int], rng: random.Random) -> str:
        """Write the operands; a mixed script takes digits or kanji character by character."""
        if self.posed == "mixed":
            return "".join(rng.choice((DIGITS, KANJI))[value] for value in values)
        return "".join(_SCRIPTS[self.posed][value] for value in values)

    def write(self, values: list[int]) -> str:
        """Write the answer in the script of the answer."""
        return "".join(_SCRIPTS[self.answered][value] for value in values)

    @property
    def mark(self) -> str:
        """The character that ends the prompt and says in which script to answer."""
        return "は" if self.answered == "kanji" else "="


def _draw_sum(skill: Skill, rng: random.Random) -> Item:
    left, right = rng.randrange(100), rng.randrange(100)
    first = skill.pose([left // 10, left % 10], rng)
    second = skill.pose([right // 10, right % 10], rng)
    answer = skill.write([int(digit) for digit in str(left + right)])
    return Item(f"{first}+{second}{skill.mark}", answer, f"sum {min(left, right)} {max(left, right)}")


def _draw_list(
    sign: str, length: int, values: int, answer: Callable[[list[int]], list[int]]
) -> Callable[[Skill, random.Random], Item]:
    """Return a drawer of questions about a list of `length` numerals, each below `values`."""

    def draw(skill: Skill, rng: random.Random) -> Item:
        operands = [rng.randrange(values) for _ in range(length)]
        prompt = f"{sign}{skill.pose(operands, rng)}{skill.mark}"
        return Item(prompt, skill.write(answer(operands)), f"{sign} {operands}")

    return draw


_DRAW: dict[Operation, Callable[[Skill, random.Random], Item]] = {
    "sum": _draw_sum,
    "sort": _draw_list("<", 5, 10, sorted),
    "distinct": _draw_list("%", 6, 6, lambda operands: list(dict.fromkeys(operands))),
    "copy": _draw_list("@", 4, 10, list),
    "reverse": _draw_list("~", 5, 10, lambda operands: operands[::-1]),
}

SKILLS: dict[str, Skill] = {
    "sums": Skill("sum", "digits", "digits"),
    "japanese": Skill("sort", "kanji", "kanji"),
    "letters": Skill("distinct", "letters", "letters"),
}
"""The skills that experts are trained for, by task name."""

CROSS_DOMAIN: dict[str, Skill] = {"japanese_sums": Skill("sum", "kanji", "kanji")}
"""Tasks that no model is ever trained for."""
