"""The data-flow space: routes through the layers of several sources."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.recipe import Recipe, SourceConfig, TokenizerConfig
from evomerge.spaces.checking import check_genome, check_inverse
from evomerge.spaces.config import SpaceConfig
from evomerge.spaces.encodings import create_encoding
from evomerge.spaces.routes import Route, recipe_route, route_depths, route_recipe
from evomerge.spaces.types import Dimension, Genome


class DataFlowSpace:
    """Routes: which source layers the hidden stream passes, in which order, and how it is scaled in between.

    Akiba et al., "Evolutionary optimization of model merging recipes", Nature Machine Intelligence 7, 2025
    <https://arxiv.org/abs/2403.13187>, section 3.2, generalised to any number of sources. Embeddings, head and
    tokenizer are model A's, the first source's, and every route begins at its first layer and ends at its last.

    Deviations from the paper:

    - *Limits.* A route over `max_hops` is repaired and not refused: it loses the kept slots of smallest indicator
      (with `mixed`, the last ones), so that every genome decodes.
    - *Bounds.* Indicators lie in [-1, 1] and scales in their range, where the paper's are unbounded.

    `decode` is not one to one: a genome has numbers that its route does not use. `encode` is its right inverse:
    `decode(encode(recipe))` is the recipe. (The weights of a network are found for scales of one alone.)

    Args:
        config: the `space:` section, of kind `data_flow`.
        sources: alias -> source.
        depths: alias -> number of layers, for every source.
        base: alias of the base; with `order` left out it is model A.
        dtype: of the merged weights, as in a recipe.
        tokenizer: as in a recipe; left out: model A's.
        seed: as in a recipe.

    Raises:
        ConfigError: when the section does not fit the sources.
    """

    def __init__(
        self,
        config: SpaceConfig,
        *,
        sources: Mapping[str, SourceConfig],
        depths: Mapping[str, int],
        base: str | None = None,
        dtype: str = "bfloat16",
        tokenizer: TokenizerConfig | None = None,
        seed: int = 0,
    ) -> None:
        order = config.order or tuple(sorted(sources, key=lambda alias: alias != base))
        self._encoding = create_encoding(config, route_depths(order, depths))
        self._sources = {alias: sources[alias] for alias in order}
        if tokenizer is not None:
            self._sources |= sources  # rows of tokens that a source lacks may be means over all of them
        self._dtype = dtype
        self._tokenizer = tokenizer
        self._seed = seed
        self.decode(self.start)  # whatever is wrong with the sources shows now, and not at the first candidate

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in the order of a genome."""
        return self._encoding.dimensions

    @property
    def start(self) -> Genome:
        """Model A as it stands; indicators as Akiba et al. 2025 initialise them, for the default `sigma`."""
        return self._encoding.start

    def route(self, genome: Genome) -> Route:
        """Return the route of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        check_genome(self.dimensions, genome)
        return self._encoding.route(genome)

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        return route_recipe(
            self.route(genome),
            sources=self._sources,
            dtype=self._dtype,
            seed=self._seed,
            tokenizer=self._tokenizer,
        )

    def encode(self, recipe: Recipe) -> Genome:
        """Return a genome of a recipe of this space.

        Raises:
            ConfigError: when no genome that can be found decodes to the recipe.
        """
        genome = self._encoding.genome(recipe_route(recipe))
        return check_inverse(self.decode, genome, recipe)
