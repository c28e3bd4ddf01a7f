"""Search spaces: what may vary, and how a genome becomes a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.errors import NotBuiltError
from evomerge.recipe import SourceConfig, TokenizerConfig
from evomerge.spaces.config import GroupsConfig, Range, SpaceConfig
from evomerge.spaces.parameter import ParameterSpace
from evomerge.spaces.reading import read_space
from evomerge.spaces.types import Dimension, Genome, Space, Value

__all__ = [
    "Dimension",
    "Genome",
    "GroupsConfig",
    "ParameterSpace",
    "Range",
    "Space",
    "SpaceConfig",
    "Value",
    "create_space",
    "read_space",
]


def create_space(
    config: SpaceConfig,
    *,
    sources: Mapping[str, SourceConfig],
    base: str | None,
    num_layers: int,
    dtype: str = "bfloat16",
    tokenizer: TokenizerConfig | None = None,
    seed: int = 0,
) -> Space:
    """Build the space of a search file's `space:` section; see `ParameterSpace` for the arguments.

    Raises:
        ConfigError: when the section does not fit the methods or the sources.
        NotBuiltError: for a kind of space that this version does not have.
    """
    if config.kind != "parameter":
        text = f"spaces of kind {config.kind!r} are not built yet; use `kind: parameter`"
        raise NotBuiltError(f"space.kind: {text}")
    return ParameterSpace(
        config,
        sources=sources,
        base=base,
        num_layers=num_layers,
        dtype=dtype,
        tokenizer=tokenizer,
        seed=seed,
    )
