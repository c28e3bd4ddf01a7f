"""Small spaces, so that searchers are tested alone: with every kind of dimension, and ones whose points breed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge import seeds
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, SourceConfig
from evomerge.search.genomes import deactivate
from evomerge.spaces import GroupsConfig, LinesRanges, ParameterSpace, SpaceConfig
from evomerge.spaces.breeding import Angle, Chromosome
from evomerge.spaces.types import Dimension, Genome, Space

METHOD = Dimension(
    name="method",
    kind="choice",
    choices=("task_arithmetic", "ties", "dare_linear"),
    default="task_arithmetic",
)
DENSITY = Dimension(name="density", kind="float", low=0.1, high=1.0, default=0.5, active_when=("method", "ties"))
Individual = NDArray[np.float64]
"""Of a `BreedingBox`: shape (dimensions,), in natural units."""
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

    def weights_of(self, source: str) -> tuple[str, ...]:
        """Return the names of the dimensions that are weights of a source."""
        return tuple(dimension.name for dimension in self.dimensions[: self.num_weights] if source == "expert")

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


def method_choices() -> ParameterSpace:
    """Return a parameter space in which both halves of a model choose a method of their own, and LiNeS is searched.

    Ten dimensions: two choices between task arithmetic and TIES, the weight, or weight and density, of the only expert
    under each, and two for the whole model.
    """
    config = SpaceConfig(
        method=("task_arithmetic", "ties"),
        groups=GroupsConfig(layers=2, method=True),
        parameters={"density": (0.1, 1.0), "scale": 1.0},
        lines=LinesRanges(alpha=(0.0, 0.6)),
    )
    sources = {alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "expert")}
    return ParameterSpace(config, sources=sources, base="base", num_layers=2)


class BreedingBox(BoxSpace):
    """A box whose points can be crossed: individuals are its vectors, and each source is large in one dimension alone.

    Two chromosomes, the first dimension and the rest; crossings and mutations that leave the box are clipped to it.

    Args:
        num_weights: dimensions, at least 2.
        num_founders: sources, at most as many as dimensions.
    """

    def __init__(self, num_weights: int = 3, num_founders: int = 3) -> None:
        super().__init__(num_weights, mixed=False)
        self.num_founders = num_founders
        self.chromosomes = (Chromosome("head", 1, 1), Chromosome("rest", num_weights - 1, num_weights - 1))

    def founders(self) -> tuple[Individual, ...]:
        """Return the sources."""
        return tuple(np.where(np.arange(self.num_weights) == index, 1.4, 0.2) for index in range(self.num_founders))

    def cross(
        self, first: Individual, second: Individual, *, splits: Sequence[int], mix: float, angle: Angle
    ) -> Individual:
        """Cross two individuals."""
        child, start = np.empty_like(first), 0
        for part, split in zip(self.chromosomes, splits, strict=True):
            for span, weight in (
                (slice(start, start + split), mix),
                (slice(start + split, start + part.size), 1 - mix),
            ):
                a, b = (first, second) if angle == "whole" else (first[span], second[span])
                child[span] = _slerp(_sine_and_angle(a, b), first[span], second[span], weight)
            start += part.size
        return self._inside(child)

    def mutate(self, individual: Individual, *, seed: int, scale: float) -> Individual:
        """Add noise."""
        noise = seeds.generator(seed, "noise").standard_normal(self.num_weights)
        return self._inside(individual + scale * noise)

    def genome(self, individual: Individual) -> Genome:
        """Return an individual as a genome."""
        return tuple(individual.tolist())

    def individual(self, genome: Genome) -> Individual:
        """Return the individual of a genome."""
        return np.asarray(genome, dtype=np.float64)

    def _inside(self, vector: Individual) -> Individual:
        return np.clip(vector, self.dimensions[0].low, self.dimensions[0].high)


def _sine_and_angle(first: Individual, second: Individual) -> tuple[float, float]:
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(first @ second) / lengths if lengths else 1.0
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    return math.sin(angle), angle


def _slerp(sine_and_angle: tuple[float, float], first: Individual, second: Individual, mix: float) -> Individual:
    sine, angle = sine_and_angle
    if sine <= 1e-6:
        return (1 - mix) * first + mix * second
    return (math.sin((1 - mix) * angle) * first + math.sin(mix * angle) * second) / sine


def closeness(space: Space, genome: Genome, target: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 minus the squared distance of each active gene from a target in the unit cube, in [0, 1].

    Args:
        space: the genome's space, with D dimensions.
        genome: one value a dimension; inactive ones are left out.
        target: shape (D,), in [0, 1]; for a choice, 0 where it should be the first one: any other costs 1.
    """
    return 1.0 - np.array(
        [
            float(value != dimension.choices[0])
            if dimension.kind == "choice"
            else (dimension.to_unit(value) - goal) ** 2
            for dimension, value, goal in zip(space.dimensions, genome, target, strict=True)
            if value is not None
        ]
    )
