"""Where the rows of embeddings and head come from when a model is aligned to another vocabulary.

A row of the target stands for a token, or for none (padding, gaps between ids):

1. a token that the model has: its own row, unless a rule replaces it everywhere;
2. a token that it lacks: what the token's rule says, else what `missing` says, the same for all models that lack it;
3. no token: the model's own row of that number, where that stands for no token in it either; else the mean of the rows
   of tokens, which as a row of the head never has the highest logit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.recipe import TokenConfig, TokenizerConfig

_SHOWN = 3
Origin = tuple[tuple[str, int], ...]
"""Alias and row of each model whose mean it is; none: zero."""


@dataclass(frozen=True, slots=True)
class Given:
    """Rows that come from the same models, or are zero."""

    rows: Tensor
    """int64 (k,): where they stand in the target."""
    donors: tuple[tuple[str, Tensor], ...]
    """Alias and rows there, int64 (k,), of each model whose mean they are; none: zero."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each row of one model comes from."""

    num_rows: int
    own: tuple[Tensor, Tensor]
    """Rows of the target and the model's own that stand there, int64 (k,) each."""
    given: tuple[Given, ...]
    mean: Tensor
    """int64 (k,): rows that are the mean of those of `tokens`."""
    tokens: Tensor
    """int64 (k,): rows that stand for a token."""

    def is_identity(self, num_rows: int) -> bool:
        """Tell whether a model of so many rows stays as it is."""
        there, here = self.own
        return self.num_rows == num_rows == len(there) and torch.equal(there, here)

    @property
    def is_computed(self) -> bool:
        """Whether some rows are means, and no copies."""
        return len(self.mean) > 0 or any(len(given.donors) > 1 for given in self.given)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model that have a row."""

    tokens: Mapping[str, int]
    num_rows: int


def plan_rows(
    known: Mapping[str, Vocabulary],
    target: Mapping[str, int],
    num_rows: int,
    rules: TokenizerConfig,
    *,
    base: str | None,
    owners: Collection[str],
) -> dict[str, Rows]:
    """Say for every model where its rows come from.

    Args:
        known: alias -> its vocabulary.
        target: the merged model's token -> id, below `num_rows`.
        num_rows: of the merged model.
        rules: for tokens that are missing somewhere.
        base: alias of the base.
        owners: aliases that count in means; each model once.

    Raises:
        RecipeError: naming the tokens that have no row anywhere and no rule, or the token that a rule asks in vain.
    """
    origins = _origins(known, target, rules, base, owners)
    replaced = {token for token, rule in rules.tokens.items() if rule.everywhere}
    return {alias: _rows(one, target, num_rows, origins, replaced) for alias, one in known.items()}


def _rows(
    one: Vocabulary, target: Mapping[str, int], num_rows: int, origins: Mapping[str, Origin], replaced: Collection[str]
) -> Rows:
    own: dict[int, int] = {}
    given: dict[tuple[str, ...], list[tuple[int, Origin]]] = defaultdict(list)
    for token, row in target.items():
        here = None if token in replaced else one.tokens.get(token)
        if here is not None:
            own[row] = here
        else:
            origin = origins[token]
            given[tuple(alias for alias, _ in origin)].append((row, origin))
    with_token, taken = set(target.values()), set(one.tokens.values())
    mean = []
    for row in sorted(set(range(num_rows)) - with_token):
        if row < one.num_rows and row not in taken:
            own[row] = row
        else:
            mean.append(row)
    there = sorted(own)
    return Rows(
        num_rows,
        (_indices(there), _indices([own[row] for row in there])),
        tuple(_given(aliases, rows) for aliases, rows in given.items()),
        _indices(mean),
        _indices(sorted(with_token)),
    )


def _given(aliases: tuple[str, ...], rows: list[tuple[int, Origin]]) -> Given:
    donors = tuple((alias, _indices([origin[place][1] for _, origin in rows])) for place, alias in enumerate(aliases))
    return Given(_indices([row for row, _ in rows]), donors)


def _origins(
    known: Mapping[str, Vocabulary],
    target: Mapping[str, int],
    rules: TokenizerConfig,
    base: str | None,
    owners: Collection[str],
) -> dict[str, Origin]:
    """Return the origin of every token that some model lacks or that a rule replaces."""
    usual = _usual(known, rules, base, owners)
    origins: dict[str, Origin] = {}
    homeless = []
    for token in target:
        rule = rules.tokens.get(token)
        lacking = any(token not in one.tokens for one in known.values())
        if not lacking and (rule is None or not rule.everywhere):
            continue
        if rule is not None and rule.zero:
            origins[token] = ()
        elif rule is not None and rule.from_ is not None:
            origins[token] = ((rule.from_, _row_of(known[rule.from_], rule.from_, token, rule)),)
        else:
            found = usual(token)
            if found is None:
                homeless.append(token)
            else:
                origins[token] = found
    if homeless:
        raise RecipeError(_homeless(homeless))
    return origins


def _usual(
    known: Mapping[str, Vocabulary], rules: TokenizerConfig, base: str | None, owners: Collection[str]
) -> Callable[[str], Origin | None]:
    def origin(token: str) -> Origin | None:
        if rules.missing == "zero":
            return ()
        found = tuple((alias, known[alias].tokens[token]) for alias in owners if token in known[alias].tokens)
        if not found:
            return None
        if rules.missing == "base" and base is not None and token in known[base].tokens:
            return ((base, known[base].tokens[token]),)
        return found

    return origin


def _row_of(one: Vocabulary, alias: str, token: str, rule: TokenConfig) -> int:
    place = f"tokenizer.tokens.{token}"
    if isinstance(rule.token, int):
        if not 0 <= rule.token < one.num_rows:
            raise RecipeError(f"{place}.token: {alias!r} has rows from 0 to {one.num_rows - 1}, got {rule.token}")
        return rule.token
    wanted = token if rule.token is None else rule.token
    if wanted not in one.tokens:
        key = "from" if rule.token is None else "token"
        raise RecipeError(
            f"{place}.{key}: {alias!r} has no row for the token {wanted!r}; name another source, or another "
            f"`token` of it"
        )
    return one.tokens[wanted]


def _homeless(tokens: list[str]) -> str:
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN])
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return (
        f"tokenizer: no source has a row for {shown}{more}; say under `tokenizer.tokens` where theirs come from, as "
        f"`{{from: ALIAS, token: OTHER}}` or `{{zero: true}}`"
    )


def _indices(rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)
