"""The route of a recipe: which source layers each output layer takes, and the scale of the stream it sees.

Hop t multiplies the stream by s_t before output layer t reads it (Akiba et al., "Evolutionary Optimization of
Model Merging Recipes", Nature Machine Intelligence 2025, section on the data-flow space). S_t = s_1 ⋯ s_t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints import check_layers_fit, output_config, routed_config
from evomerge.errors import InfeasibleError, NotBuiltError, SourceError
from evomerge.merging.dtypes import DTYPES
from evomerge.merging.sources import Sources
from evomerge.recipe import Blend, ExpandedRecipe, Recipe, Rule
from evomerge.recipe.resolution import Module


@dataclass(frozen=True, slots=True)
class Hop:
    """One output layer."""

    take: Mapping[str, int]
    """Alias -> index of the layer that is taken of it."""
    lead: str
    """The alias that has the layer's buffers, and tells what kind of layer it is."""
    blends: Mapping[Module, Blend]
    scale: float
    """S_t, the product of all scales up to this hop; finite and not 0."""
    is_idle: bool = False
    """Whether the layer only fills a slot: it adds nothing to the stream."""
    rules: tuple[Rule, ...] = ()
    """Exceptions for single tensors; the first that matches counts."""


@dataclass(frozen=True, slots=True)
class Route:
    """The hops of a merged model, in order."""

    hops: tuple[Hop, ...]
    is_moved: bool
    """Whether the layers are anything but all the layers of the sources, one to one."""

    @property
    def is_scaled(self) -> bool:
        """Whether any hop sees a stream of another scale than 1."""
        return any(hop.scale != 1 for hop in self.hops)

    @property
    def is_plain(self) -> bool:
        """Whether it is a merge layer by layer, with nothing moved or scaled."""
        return not (self.is_moved or self.is_scaled)


def read_route(expanded: ExpandedRecipe, sources: Sources) -> Route:
    """Read the route of a recipe and check that the sources can be run along it.

    Args:
        expanded: the recipe in full.
        sources: its opened sources.

    Raises:
        NotBuiltError: when the architecture's blocks are not understood well enough to move or scale them.
        SourceError: when layers that are to be blended with each other differ, or the sources do.
        InfeasibleError: when the product of the scales is 0 or infinite in float64.
    """
    scale = 1.0
    hops = []
    for index, layer in enumerate(expanded.layers):
        scale *= layer.scale
        if scale == 0 or not math.isfinite(scale):
            raise InfeasibleError(
                f"layers[{index}].scale: the product of the scales up to here is {scale}; use scales closer to 1"
            )
        lead = sources.reference if sources.reference in layer.take else next(iter(layer.take))
        hops.append(Hop(layer.take, lead, layer.blends, scale, rules=layer.rules))
    num_layers = sources.models[sources.reference].layout.num_layers
    in_place = all(taken == index for index, hop in enumerate(hops) for taken in hop.take.values())
    route = Route(tuple(hops), is_moved=not in_place or len(hops) != num_layers)
    if not route.is_plain:
        _check(route, sources)
    return route


def _check(route: Route, sources: Sources) -> None:
    reference = sources.blocks(sources.reference)
    for index, hop in enumerate(route.hops):
        for alias, taken in hop.take.items():
            blocks = sources.blocks(alias)
            if blocks.model_type != reference.model_type:
                raise SourceError(
                    f"sources {sources.reference!r} and {alias!r} do not fit each other: one is of the architecture "
                    f"{reference.model_type!r}, the other of {blocks.model_type!r}; route through models of one"
                )
            _check_blended(index, hop, alias, taken, sources)
        if hop.scale < 0 and reference.bare:
            raise NotBuiltError(
                f"layers[{index}].scale: the norms of {reference.model_type!r} have no weights that could take the "
                f"sign of a stream scaled by {hop.scale:g}; use positive scales"
            )


def _check_blended(index: int, hop: Hop, alias: str, taken: int, sources: Sources) -> None:
    ours, theirs = sources.layer_shapes(hop.lead, hop.take[hop.lead]), sources.layer_shapes(alias, taken)
    if ours is not theirs:
        check_layers_fit(hop.lead, ours, alias, theirs, f"layers[{index}]")
    kind, other = sources.kinds(hop.lead).at(hop.take[hop.lead]), sources.kinds(alias).at(taken)
    if kind != other:
        raise SourceError(
            f"layers[{index}].take: layer {hop.take[hop.lead]} of {hop.lead!r} is of another kind than layer {taken} "
            f"of {alias!r} ({kind} against {other}); blend layers of one kind"
        )


def route_config(recipe: Recipe, sources: Sources, route: Route) -> dict[str, Any]:
    """Return the `config.json` of the merged model: the reference's, with its layers along the route.

    Raises:
        SourceError: when a configuration cannot say which layer is of which kind.
    """
    reference = sources.models[sources.reference]
    config = output_config(reference.config, DTYPES[recipe.dtype], tied=bool(reference.tied))
    if not route.is_moved:
        return config
    kinds = [sources.kinds(hop.lead).at(hop.take[hop.lead]) for hop in route.hops]
    return routed_config(config, kinds, sources.reference)
