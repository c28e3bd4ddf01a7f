"""Patterns of tensor names: runs of the dotted parts of a name, each part with `*` for any text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = ("[^.]*".join(re.escape(piece) for piece in part.split("*")) for part in pattern.split("."))
    return re.compile(r"(?:^|\.)" + r"\.".join(parts) + r"(?:\.|$)")


def is_pattern(text: str) -> bool:
    """Tell whether a text can be matched at all: dotted parts, none of them empty."""
    return all(text.split(".")) and text.isprintable() and " " not in text


def matches(patterns: Iterable[str], name: str) -> bool:
    """Tell whether any pattern matches a tensor's name.

    Example:
        >>> name = "model.layers.10.self_attn.q_proj.weight"
        >>> matches(["q_proj"], name), matches(["layers.10.self_attn"], name), matches(["*attn.?_proj"], name)
        (True, True, False)
        >>> matches(["layers.1"], name), matches(["*_attn.q*"], name)
        (False, True)
    """
    return any(_compiled(pattern).search(name) for pattern in patterns)
