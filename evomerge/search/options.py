"""A searcher's options, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from evomerge.documents import Document, StrictModel

OptionsT = TypeVar("OptionsT", bound=StrictModel)


def parse_options(model: type[OptionsT], options: Mapping[str, Any] | None) -> OptionsT:
    """Return a searcher's options as its model.

    Raises:
        ConfigError: for an unknown option (with the nearest known one) or a value out of range.
    """
    return Document(data=dict(options or {}), name="search.options", lines={}).parse(model)
