"""The joint space: coefficients of a merge, and a route through the merged model and its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig, TokenizerConfig
from evomerge.spaces.checking import check_genome, check_inverse
from evomerge.spaces.config import SpaceConfig
from evomerge.spaces.encodings import create_encoding
from evomerge.spaces.parameter import ParameterSpace
from evomerge.spaces.routes import Hop, recipe_route, route_depths, route_recipe
from evomerge.spaces.types import Dimension, Genome

MERGED = "merged"
"""Alias of the merged model in the pool of a route."""
ROUTE = "route"
"""How the names of the data-flow dimensions begin."""

Schedule = Literal["together", "parameter_then_data_flow", "alternating"]


class JointSpace:
    """A parameter-space merge joins the pool of a data-flow space as its model A, both in one genome.

    Akiba et al. 2025, section 3.3. The merged model is a nested recipe, the source `merged`. A genome is that of
    the parameter space followed by that of the data-flow space (names begin with `route/`). Where the route is the
    merged model as it stands, the recipe is that of the parameter space, with nothing nested.

    Args:
        config: the `space:` section, of kind `joint`.
        sources: alias -> source, the base included; `merged` is taken.
        base: alias of the base, for methods that need one.
        num_layers: layers of every source.
        dtype: of the merged weights, as in a recipe.
        tokenizer: as in a recipe.
        seed: of random masks, as in a recipe.

    Raises:
        ConfigError: when the section does not fit the methods or the sources.
    """

    def __init__(
        self,
        config: SpaceConfig,
        *,
        sources: Mapping[str, SourceConfig],
        base: str | None,
        num_layers: int,
        dtype: str = "bfloat16",
        tokenizer: TokenizerConfig | None = None,
        seed: int = 0,
    ) -> None:
        if MERGED in sources:
            raise ConfigError(f"sources.{MERGED}: a joint space calls the merged model so; name the source otherwise")
        self.schedule: Schedule = config.schedule
        self.stage_evaluations = config.stage_evaluations
        self._parameter = ParameterSpace(
            config, sources=sources, base=base, num_layers=num_layers, dtype=dtype, tokenizer=tokenizer, seed=seed
        )
        self._sources = dict(sources)
        experts = tuple(alias for alias in sources if alias != base)
        self._order = config.order or (MERGED, *experts)
        if self._order[0] != MERGED:
            raise ConfigError(f"space.order: the route of a joint space begins in `{MERGED}`; put it first")
        depths = dict.fromkeys((MERGED, *sources), num_layers)
        self._encoding = create_encoding(config, route_depths(self._order, depths))
        self._plain = tuple(Hop(MERGED, layer) for layer in range(num_layers))
        self._base, self._dtype, self._tokenizer, self._seed = base, dtype, tokenizer, seed
        self._dimensions = (*self._parameter.dimensions, *map(_in_route, self._encoding.dimensions))
        self.decode(self.start)

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in the order of a genome."""
        return self._dimensions

    @property
    def parts(self) -> dict[str, slice]:
        """Where the parts lie in a genome: `parameter` and `data_flow`."""
        cut = len(self._parameter.dimensions)
        return {"parameter": slice(0, cut), "data_flow": slice(cut, len(self._dimensions))}

    @property
    def start(self) -> Genome:
        """The starts of both parts, so that the first recipe is the parameter space's own."""
        return (*self._parameter.start, *self._encoding.start)

    def weights_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the dimensions that are weights of a source in the merged model; routes have none."""
        return self._parameter.weights_of(source)

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        check_genome(self._dimensions, genome)
        parts = self.parts
        merged = self._parameter.decode(genome[parts["parameter"]])
        route = self._encoding.route(genome[parts["data_flow"]])
        if route == self._plain:
            return merged
        return route_recipe(
            route,
            sources={MERGED: SourceConfig(model=merged), **self._sources},
            base=self._base,
            dtype=self._dtype,
            tokenizer=self._tokenizer,
            seed=self._seed,
        )

    def encode(self, recipe: Recipe) -> Genome:
        """Return a genome of a recipe of this space.

        Raises:
            ConfigError: when no genome that can be found decodes to the recipe.
        """
        nested = recipe.sources[MERGED].model if MERGED in recipe.sources else None
        if isinstance(nested, Recipe):
            genome = (*self._parameter.encode(nested), *self._encoding.genome(recipe_route(recipe)))
        else:
            genome = (*self._parameter.encode(recipe), *self._encoding.genome(self._plain))
        return check_inverse(self.decode, genome, recipe)


def _in_route(dimension: Dimension) -> Dimension:
    """Return a dimension of the route under its name in the joint space."""
    when = dimension.active_when
    return replace(
        dimension,
        name=f"{ROUTE}/{dimension.name}",
        active_when=(f"{ROUTE}/{when[0]}", when[1]) if when is not None else None,
    )
