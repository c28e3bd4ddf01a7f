"""A small space with every kind of dimension, so that searchers are tested alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.search.genomes import deactivate
from evomerge.spaces.types import Dimension, Genome

METHOD = Dimension(
    name="method",
    kind="choice",
    choices=("task_arithmetic", "ties", "dare_linear"),
    default="task_arithmetic",
)
DENSITY = Dimension(name="density", kind="float", low=0.1, high=1.0, default=0.5, active_when=("method", "ties"))
MASK_SEED = Dimension(name="seed", kind="int", low=0, high=9, default=0)


class BoxSpace:
    """Weights of one expert over a base, one a layer; if `mixed`, also a method, a density and a seed.

    The method is a choice, the density a float that exists under `ties` alone, the seed an int: recipes over
    two sources, that nobody needs to build.

    Args:
        num_weights: number of layers and of float dimensions `weight/layers.K`; at least 1 unless `mixed`.
        mixed: whether the three dimensions of other kinds come after them.
    """

    def __init__(self, num_weights: int = 3, *, mixed: bool = True) -> None:
        weights = tuple(
            Dimension(name=f"weight/layers.{index}", kind="float", low=0.0, high=1.5, default=0.5)
            for index in range(num_weights)
        )
        self.num_weights = num_weights
        self.mixed = mixed
        self.dimensions = (*weights, METHOD, DENSITY, MASK_SEED) if mixed else weights
        self.start: Genome = deactivate(self.dimensions, [dimension.default for dimension in self.dimensions])

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome.

        Raises:
            ConfigError: when the genome does not fit the dimensions.
        """
        if len(genome) != len(self.dimensions) or deactivate(self.dimensions, genome) != tuple(genome):
            raise ConfigError(f"genome: {genome!r} does not fit the {len(self.dimensions)} dimensions of this space")
        layers = [
            {"take": {"base": index, "expert": index}, "blend": {"weight": {"expert": genome[index]}}}
            for index in range(self.num_weights)
        ]
        method, density, seed = genome[self.num_weights :] if self.mixed else ("task_arithmetic", None, 0)
        blend = {"method": method} if density is None else {"method": method, "density": density}
        data = {
            "recipe": 1,
            "sources": {"base": {"model": "org/base"}, "expert": {"model": "org/expert"}},
            "base": "base",
            "seed": seed,
            "blend": blend,
        }
        return Recipe.from_mapping({**data, "layers": layers} if layers else data)

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe of this space.

        Raises:
            ConfigError: when no genome of this space decodes to the recipe.
        """
        data = recipe.to_mapping()
        try:
            weights = tuple(layer["blend"]["weight"]["expert"] for layer in data.get("layers", ()))
            blend = data["blend"]
            rest = (blend["method"], blend.get("density"), data.get("seed", 0)) if self.mixed else ()
            genome: Genome = (*weights, *rest)
            if self.decode(genome) == recipe:
                return genome
        except (KeyError, TypeError):
            pass
        raise ConfigError("recipe: no genome of this space decodes to it; give a recipe that this space made")


def closeness(space: BoxSpace, genome: Genome, target: Sequence[float] | NDArray[np.float64]) -> float:
    """Return 1 minus the mean squared distance of a genome from a target in the unit cube, in (-inf, 1].

    Args:
        space: the genome's space, with D dimensions.
        genome: one value a dimension; inactive ones do not count.
        target: shape (D,), in [0, 1]; for a choice, 0 where it should be the first one: any other costs 1.
    """
    terms = [
        float(value != dimension.choices[0]) if dimension.kind == "choice" else (dimension.to_unit(value) - goal) ** 2
        for dimension, value, goal in zip(space.dimensions, genome, target, strict=True)
        if value is not None
    ]
    return 1.0 - sum(terms) / len(terms)
