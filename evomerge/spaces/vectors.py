"""Individuals that are weight vectors in memory, with the lineage that makes them again.

Mutation gives every child a noise of its own. As pieces, an individual would carry the noises of all its ancestors;
here it carries its weights, and its lineage is a step a crossing or mutation, shared with its relatives.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.operators.block_grams import block_size
from evomerge.operators.noise import noise
from evomerge.recipe import Recipe
from evomerge.spaces.breeding import Angle, Chromosome
from evomerge.spaces.pieces import Pieces, mutate, simplified, slerp
from evomerge.spaces.piecewise import PiecewiseSpace
from evomerge.spaces.types import Dimension, Genome, Value

Weights = NDArray[np.float32]
MadeT = TypeVar("MadeT")

_WORD = "vector"
"""First gene of an individual of this space; the second is its number."""


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A lineage begins: with a source, or a mixture of the sources that a numeric searcher made."""

    pieces: Pieces


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Two lineages meet: up to `until` the first of the factors hold, after it the second."""

    first: Lineage
    second: Lineage
    split: int
    """As in `BreedingSpace.cross`."""
    factors: tuple[tuple[float, float], tuple[float, float]]
    """Of `first` and `second`, before the split and after it."""


@dataclass(frozen=True, slots=True, eq=False)
class Mutation:
    """A lineage goes on with noise added."""

    parent: Lineage
    seed: int
    scale: float


Lineage = Origin | Crossing | Mutation


@dataclass(frozen=True, eq=False)
class VectorIndividual:
    """Weights and where they come from."""

    number: int
    """Unique in its space, in the order of making."""
    weights: Weights
    """Shape (weights,), read-only."""
    lineage: Lineage

    @cached_property
    def square(self) -> float:
        """Squared length of the weights; most individuals are never parents and do not need it."""
        return _product(self.weights, self.weights)


class Held(tuple[Value, ...]):  # noqa: SLOT001  a tuple has no room for slots
    """The genome of an individual in memory, `("vector", number)`: whoever holds it holds the individual."""

    individual: VectorIndividual

    @classmethod
    def of(cls, individual: VectorIndividual) -> Held:
        """Return the genome of an individual."""
        genome = cls((_WORD, individual.number))
        genome.individual = individual
        return genome


class VectorSpace:
    """The individuals of a piecewise space as vectors: for models small enough that an archive of them fits in memory.

    Without mutation it makes the children that the piecewise space makes, to the rounding of float32 and, as angles are
    measured here, to the rounding of angles. With mutation, angles count the noise as it is, where the piecewise space
    takes it to be orthogonal.

    A genome is a number that holds its individual: such genomes are for one process, not for a journal.

    Args:
        pieces: the piecewise space, of one chromosome.
        materialise: gives the weights of pieces, float32 of shape (weights,).
    """

    def __init__(self, pieces: PiecewiseSpace, materialise: Callable[[Pieces], Weights]) -> None:
        self._pieces = pieces
        self._materialise = materialise
        self._numbers = itertools.count()

    @property
    def chromosomes(self) -> tuple[Chromosome, ...]:
        """The one chromosome."""
        return self._pieces.chromosomes

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """Those of the piecewise space."""
        return self._pieces.dimensions

    @property
    def start(self) -> Genome:
        """That of the piecewise space."""
        return self._pieces.start

    def founders(self) -> tuple[VectorIndividual, ...]:
        """Return the sources themselves, in order of declaration."""
        return tuple(self._from_pieces(pieces) for pieces in self._pieces.founders())

    def cross(
        self, first: VectorIndividual, second: VectorIndividual, *, splits: Sequence[int], mix: float, angle: Angle
    ) -> VectorIndividual:
        """Cross two individuals; see `BreedingSpace.cross`.

        Raises:
            ValueError: for a wrong number of split points, or one out of range.
        """
        split = self._split(splits)
        if angle == "whole":
            products = (first.square, second.square, _product(first.weights, second.weights))
            factors = (slerp(products, mix), slerp(products, 1.0 - mix))
        else:
            factors = (
                slerp(_products(first.weights[:split], second.weights[:split]), mix),
                slerp(_products(first.weights[split:], second.weights[split:]), 1.0 - mix),
            )
        lineage = Crossing(first.lineage, second.lineage, split, factors)
        return self._new(_crossed(first.weights, second.weights, lineage), lineage)

    def mutate(self, individual: VectorIndividual, *, seed: int, scale: float) -> VectorIndividual:
        """Add `scale` times the noise of a seed to all weights."""
        lineage = Mutation(individual.lineage, seed, scale)
        return self._new(_mutated(individual.weights, lineage), lineage)

    def genome(self, individual: VectorIndividual) -> Genome:
        """Return the individual's number as a genome."""
        return Held.of(individual)

    def individual(self, genome: Genome) -> VectorIndividual:
        """Return the individual of a genome, of this space or of the piecewise one.

        Raises:
            ConfigError: for a genome of neither, or one of this space that was written down.
        """
        if isinstance(genome, Held):
            return genome.individual
        if genome and genome[0] == _WORD:
            raise ConfigError(f"genome: {genome!r} is from another process; keep the recipe of what shall last")
        return self._from_pieces(self._pieces.individual(genome))

    def decode(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome: of an individual the pieces that its lineage comes to, with all noises.

        Raises:
            ConfigError: as `individual` does.
        """
        return self._pieces.decode(self._in_pieces(genome))

    def numeric(self, genome: Genome) -> Genome:
        """Return a genome of numbers: itself, or for an individual what is nearest to it; see `PiecewiseSpace.numeric`.

        Raises:
            ConfigError: as `individual` does.
        """
        return self._pieces.numeric(self._in_pieces(genome))

    def encode(self, recipe: Recipe) -> Genome:
        """Return the genome of a recipe, in the piecewise space.

        Raises:
            ConfigError: when no genome decodes to the recipe.
        """
        return self._pieces.encode(recipe)

    def rebuild(self, lineage: Lineage) -> Weights:
        """Return the weights of a lineage, computed anew from the sources: bit by bit those of its individual."""
        return _replay(lineage, self._materialise, _crossed, _mutated)

    def pieces(self, individual: VectorIndividual) -> Pieces:
        """Return an individual as pieces, with the factors that were recorded."""
        return _replay(individual.lineage, lambda pieces: pieces, self._crossed_pieces, _mutated_pieces)

    def _in_pieces(self, genome: Genome) -> Genome:
        """Return a genome of the piecewise space."""
        if isinstance(genome, Held) or (genome and genome[0] == _WORD):
            return self._pieces.genome(self.pieces(self.individual(genome)))
        return genome

    def _crossed_pieces(self, first: Pieces, second: Pieces, step: Crossing) -> Pieces:
        bound = step.split // block_size(self.chromosomes[0].size)
        ends = np.unique(np.concatenate([first.ends, second.ends, [bound] if bound else []])).astype(np.int64)
        seeds = tuple(sorted({*first.seeds, *second.seeds}))
        mixed = np.zeros((first.num_sources + len(seeds), len(ends)))
        before, after = step.factors
        factors = np.where(ends <= bound, np.array([before]).T, np.array([after]).T)
        for parent, each in zip((first, second), factors, strict=True):
            rows = [*range(parent.num_sources), *(parent.num_sources + seeds.index(seed) for seed in parent.seeds)]
            mixed[rows] += parent.coefficients[:, np.searchsorted(parent.ends, ends)] * each
        return simplified(self._pieces.grams, ends, mixed, seeds)

    def _split(self, splits: Sequence[int]) -> int:
        """Return how many weights come before the split."""
        (part,) = self.chromosomes
        if len(splits) != 1 or not 0 <= splits[0] <= part.positions:
            raise ValueError(f"expected one split point in [0, {part.positions}], got {tuple(splits)}")
        return min(part.size, splits[0] * block_size(part.size))

    def _from_pieces(self, pieces: Pieces) -> VectorIndividual:
        return self._new(self._materialise(pieces), Origin(pieces))

    def _new(self, weights: Weights, lineage: Lineage) -> VectorIndividual:
        weights.flags.writeable = False
        return VectorIndividual(next(self._numbers), weights, lineage)


def _product(one: Weights, two: Weights) -> float:
    # Not `dot`: a library's kernel sums in an order that depends on the processor.
    return float(np.multiply(one, two, dtype=np.float64).sum())


def _products(one: Weights, two: Weights) -> tuple[float, float, float]:
    return (_product(one, one), _product(two, two), _product(one, two))


def _crossed(first: Weights, second: Weights, step: Crossing) -> Weights:
    child = np.empty_like(first)
    for part, (a, b) in zip((slice(step.split), slice(step.split, None)), step.factors, strict=True):
        np.multiply(first[part], np.float32(a), out=child[part])
        child[part] += np.float32(b) * second[part]
    return child


def _mutated(parent: Weights, step: Mutation) -> Weights:
    return parent + (step.scale * noise(step.seed, 0, len(parent))).astype(np.float32)


def _mutated_pieces(parent: Pieces, step: Mutation) -> Pieces:
    return mutate(parent, seed=step.seed, scale=step.scale)


def _replay(
    lineage: Lineage,
    origin: Callable[[Pieces], MadeT],
    crossed: Callable[[MadeT, MadeT, Crossing], MadeT],
    mutated: Callable[[MadeT, Mutation], MadeT],
) -> MadeT:
    """Make a lineage from its beginnings, each step once, and forget what no later step needs."""
    order, uses = _in_order(lineage)
    made: dict[int, MadeT] = {}
    for step in order:
        if isinstance(step, Origin):
            made[id(step)] = origin(step.pieces)
        elif isinstance(step, Crossing):
            made[id(step)] = crossed(made[id(step.first)], made[id(step.second)], step)
        else:
            made[id(step)] = mutated(made[id(step.parent)], step)
        for parent in _parents(step):
            uses[id(parent)] -= 1
            if not uses[id(parent)]:
                del made[id(parent)]
    return made[id(lineage)]


def _in_order(lineage: Lineage) -> tuple[list[Lineage], Counter[int]]:
    """Return every step of a lineage, parents first, and how often each is a parent."""
    order: list[Lineage] = []
    uses: Counter[int] = Counter()
    seen: set[int] = set()
    stack: list[tuple[Lineage, bool]] = [(lineage, False)]
    while stack:
        step, parents_done = stack.pop()
        if parents_done:
            order.append(step)
        elif id(step) not in seen:
            seen.add(id(step))
            stack.append((step, True))
            for parent in _parents(step):
                uses[id(parent)] += 1
                stack.append((parent, False))
    return order, uses


def _parents(step: Lineage) -> tuple[Lineage, ...]:
    if isinstance(step, Crossing):
        return (step.first, step.second)
    return (step.parent,) if isinstance(step, Mutation) else ()
