"""Ready search spaces: `space: {from: search_spaces/x.yaml, ...overrides}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.documents import read_yaml
from evomerge.errors import ConfigError
from evomerge.spaces.config import SpaceConfig

_FROM = "from"


def read_space(section: Mapping[str, Any], resolve: Callable[[str], Path]) -> dict[str, Any]:
    """Fill in a `space:` section that starts from a ready one.

    Args:
        section: the section as written. Its keys overlay those of the file that `from` names; `groups`,
            `parameters` and `lines` are overlaid key by key.
        resolve: the path of the file that a `from` names.

    Returns:
        The section without `from`; what it says itself is not validated yet.

    Raises:
        ConfigError: when the file is missing or wrong, with its line.
    """
    own = {key: value for key, value in section.items() if key != _FROM}
    if _FROM not in section:
        return own
    name = section[_FROM]
    if not isinstance(name, str):
        raise ConfigError(f"space.from: expected the name of a file, got {name!r:.60}")
    document = read_yaml(resolve(name))
    if isinstance(document.data, Mapping) and _FROM in document.data:
        raise document.error((_FROM,), "a ready space stands for itself and starts from no other")
    document.parse(SpaceConfig)
    merged = dict(document.data)
    for key, value in own.items():
        below = merged.get(key)
        if key in ("groups", "parameters", "lines") and isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = {**below, **value}
        else:
            merged[key] = value
    return merged
