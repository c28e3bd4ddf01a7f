"""Search spaces: what may vary, and how a genome becomes a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.errors import ConfigError
from evomerge.recipe import SourceConfig, TokenizerConfig
from evomerge.spaces.config import GroupsConfig, LinesRanges, Range, SpaceConfig
from evomerge.spaces.data_flow import DataFlowSpace
from evomerge.spaces.grams import Grams
from evomerge.spaces.joint import JointSpace
from evomerge.spaces.parameter import ParameterSpace
from evomerge.spaces.pieces import Pieces
from evomerge.spaces.piecewise import PiecewiseSpace
from evomerge.spaces.reading import read_space
from evomerge.spaces.types import Dimension, Genome, Space, Value

__all__ = [
    "DataFlowSpace",
    "Dimension",
    "Genome",
    "Grams",
    "GroupsConfig",
    "JointSpace",
    "LinesRanges",
    "ParameterSpace",
    "Pieces",
    "PiecewiseSpace",
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
    num_layers: int | Mapping[str, int],
    dtype: str = "bfloat16",
    tokenizer: TokenizerConfig | None = None,
    seed: int = 0,
    grams: Grams | None = None,
) -> Space:
    """Build the space of a search file's `space:` section.

    Args:
        config: the section.
        sources: alias -> source, the base included.
        base: alias of the base, if any.
        num_layers: layers of every source, by alias where they differ.
        dtype: of the merged weights, as in a recipe.
        tokenizer: as in a recipe.
        seed: of random masks, as in a recipe.
        grams: of the sources, for a piecewise space.

    Raises:
        ConfigError: when the section does not fit the methods or the sources.
        ValueError: when a piecewise space gets no `grams`.
    """
    depths = {alias: num_layers if isinstance(num_layers, int) else num_layers[alias] for alias in sources}
    if config.kind == "data_flow":
        return DataFlowSpace(
            config, sources=sources, depths=depths, base=base, dtype=dtype, tokenizer=tokenizer, seed=seed
        )
    if len(set(depths.values())) > 1:
        listed = ", ".join(f"{alias} {depth}" for alias, depth in depths.items())
        raise ConfigError(f"sources: they differ in depth ({listed}); a space of this kind merges layer by layer")
    if config.kind == "piecewise":
        if grams is None:
            raise ValueError("a piecewise space needs the Gram matrices of its sources")
        return PiecewiseSpace(config, grams, sources=sources, base=base, dtype=dtype, tokenizer=tokenizer)
    one_depth = next(iter(depths.values()))
    if config.kind == "joint":
        return JointSpace(
            config, sources=sources, base=base, num_layers=one_depth, dtype=dtype, tokenizer=tokenizer, seed=seed
        )
    return ParameterSpace(
        config, sources=sources, base=base, num_layers=one_depth, dtype=dtype, tokenizer=tokenizer, seed=seed
    )
