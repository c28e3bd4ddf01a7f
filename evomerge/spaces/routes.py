"""Routes through the layers of several sources: the row of slots, paths over it, and routes in recipes.

Legend (Akiba et al. 2025): M layers of all sources in a row, laid out r times: T = M*r slots. Model A is the first
source; every route starts at its first layer and ends at its last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig, TokenizerConfig


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a route: a source layer, and the factor on the hidden stream that enters it."""

    alias: str
    layer: int
    scale: float = 1.0


Route = tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A hop as an encoding sees it."""

    slot: int
    """Index of the slot; T, the number of slots, for model A's last layer where it is appended."""
    row: int
    """Index of the layer in the row of all layers, below M."""


@dataclass(frozen=True)
class Row:
    """The layers of all sources in a row, laid out several times."""

    layers: tuple[tuple[str, int], ...]
    """(alias, layer) of the M layers of one repetition, in order."""
    repeats: int

    @classmethod
    def of(cls, depths: Mapping[str, int], repeats: int) -> Row:
        """Lay out the layers of sources (alias -> number of layers), in their order."""
        return cls(tuple((alias, layer) for alias, depth in depths.items() for layer in range(depth)), repeats)

    @property
    def num_slots(self) -> int:
        """T = M*r."""
        return len(self.layers) * self.repeats

    @property
    def last(self) -> int:
        """Index in the row of model A's last layer."""
        first_alias = self.layers[0][0]
        return sum(alias == first_alias for alias, _ in self.layers) - 1

    def label(self, slot: int) -> str:
        """Return `repetition/alias.layer` of a slot, counted from 0, or `end`."""
        if slot == self.num_slots:
            return "end"
        repeat, row = divmod(slot, len(self.layers))
        return f"{repeat}/{self.layers[row][0]}.{self.layers[row][1]}"

    def path(self, kept: Sequence[int]) -> list[Step]:
        """Return the path over the kept slots (ascending), forced to begin and end in model A.

        Slot 0 is always kept; where the last kept slot is not model A's last layer, that layer is appended.
        """
        slots = [0, *(slot for slot in kept if slot != 0)]
        steps = [Step(slot, slot % len(self.layers)) for slot in slots]
        return steps if steps[-1].row == self.last else [*steps, Step(self.num_slots, self.last)]

    def limited(self, kept: Sequence[int], indicators: Sequence[float], max_hops: int | None) -> list[Step]:
        """Return the path over the kept slots without those of smallest indicator that exceed the limit.

        Of equal indicators, the later slot goes first.
        """
        left = set(kept)
        steps = self.path(sorted(left))
        for slot in sorted(left - {0}, key=lambda slot: (indicators[slot], -slot)):
            if max_hops is None or len(steps) <= max_hops:
                break
            left.remove(slot)
            steps = self.path(sorted(left))
        return steps

    def place(self, layers: Sequence[tuple[str, int]]) -> list[Step]:
        """Return the steps of a route, each at the earliest slot after the one before it.

        Raises:
            ConfigError: when the row has no such slots, or the route does not begin with the first one.
        """
        index = {layer: row for row, layer in enumerate(self.layers)}
        steps: list[Step] = []
        slot = -1
        for number, layer in enumerate(layers):
            row = index.get(layer)
            if row is None:
                raise ConfigError(f"recipe: layers[{number}] takes layer {layer[1]} of {layer[0]!r}, not in this space")
            slot += 1 + (row - slot - 1) % len(self.layers)
            if slot >= self.num_slots:
                if row != self.last or number < len(layers) - 1:
                    text = f"the route needs more than {self.repeats} repetitions at layers[{number}]"
                    raise ConfigError(f"recipe: {text}; it is not in this space")
                slot = self.num_slots
            steps.append(Step(slot, row))
        return steps


def route_depths(order: Sequence[str], depths: Mapping[str, int]) -> dict[str, int]:
    """Return alias -> number of layers in the order of the route.

    Raises:
        ConfigError: for an alias that is no source, or fewer than two of them.
    """
    for alias in order:
        if alias not in depths:
            raise ConfigError(f"space.order: {alias!r} is not a source{did_you_mean(alias, depths)}")
    if len(order) < 2:
        raise ConfigError("space.order: a route needs the layers of two sources or more")
    return {alias: depths[alias] for alias in order}


def route_recipe(
    route: Route,
    *,
    sources: Mapping[str, SourceConfig],
    dtype: str,
    seed: int,
    base: str | None = None,
    tokenizer: TokenizerConfig | None = None,
) -> Recipe:
    """Return the recipe of a route; embeddings and head are those of the source where it begins.

    Raises:
        RecipeError: when they do not make a recipe.
    """
    first = route[0].alias
    copy = {"blend": {"method": "linear", "weight": {first: 1.0}}}
    document: dict[str, Any] = {"recipe": 1, "sources": dict(sources), "dtype": dtype, "seed": seed}
    document |= {"base": base} if base is not None else {}
    document |= {
        "tokenizer": tokenizer if tokenizer is not None else {"from": first},
        "layers": [
            {"take": {hop.alias: hop.layer}} | ({"scale": hop.scale} if hop.scale != 1.0 else {}) for hop in route
        ],
        "embeddings": copy,
        "head": copy,
    }
    return Recipe.from_mapping(document)


def recipe_route(recipe: Recipe) -> Route:
    """Return the route of a recipe whose layers take one source layer each.

    Raises:
        ConfigError: when they do not.
    """
    layers = recipe.layers or ()
    for index, layer in enumerate(layers):
        if len(layer.take) > 1 or layer.blend is not None or layer.modules is not None:
            raise ConfigError(f"recipe: layers[{index}] is no step of a route, which takes one source layer as it is")
    if not layers:
        raise ConfigError("recipe: it has no route; its `layers` are left out")
    return tuple(Hop(alias, depth, layer.scale) for layer in layers for alias, depth in layer.take.items())
