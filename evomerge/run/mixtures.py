"""Mixtures of state dicts: the space they make up, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.state_dicts import StateDicts
from evomerge.operators.block_grams import BlockGrams
from evomerge.operators.noise import noise
from evomerge.recipe import SourceConfig
from evomerge.spaces import SpaceConfig
from evomerge.spaces.grams import Grams
from evomerge.spaces.pieces import Pieces
from evomerge.spaces.piecewise import WHOLE, PiecewiseSpace
from evomerge.spaces.types import Genome
from evomerge.spaces.vectors import VectorIndividual, VectorSpace

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.merging.state_dicts import StateDict

Individual = Pieces | VectorIndividual
Weights = NDArray[np.float32]

SHORT = 4096
"""Pieces shorter than this on average are spread out by one gather; longer ones are each filled by itself."""
STRETCH = 1 << 20
"""Weights whose inner products are computed at a time, in float64."""
SMALL = 1 << 16
"""Up to so many weights, crossing and keeping them takes less time than crossing pieces and mixing them."""
REMEMBERED = 64
"""So many individuals that were last made are not read from their genomes again."""


class Mixtures:
    """The mixtures of a few state dicts.

    An individual is pieces, a few kilobytes. Of a small model it is its weights, and so it is with mutation: as pieces
    it would have the noises of all its ancestors.

    Args:
        sources: alias -> state dict.
        mutate: whether children get noise of their own.
        chunks: of the piecewise space.

    Raises:
        SourceError: when the state dicts do not fit each other.
        ConfigError: for more chunks than weights.
    """

    def __init__(self, sources: Mapping[str, StateDict], *, mutate: bool, chunks: int) -> None:
        self._models = StateDicts(sources)
        grams = _grams(self._models)
        origins = {
            alias: SourceConfig(model=f"sha256:{self._models.content_hash(alias)}") for alias in self._models.aliases
        }
        pieces = _Remembering(grams, sources=origins, chunks=chunks)
        self._grams = grams
        self.space: PiecewiseSpace | VectorSpace = pieces
        if mutate or self._models.num_weights <= SMALL:
            self.space = VectorSpace(pieces, self._mix)

    def individual(self, genome: Genome) -> Individual:
        """Return the individual of a genome of the space.

        Raises:
            ConfigError: when it is of another space.
        """
        return self.space.individual(genome)

    def state_dict(self, individual: Individual) -> dict[str, Tensor]:
        """Return the state dict of an individual."""
        return self._models.state_dict(self._weights(individual))

    def overwrite(self, individual: Individual) -> dict[str, Tensor]:
        """Return the state dict of an individual in tensors that the next call overwrites."""
        return self._models.overwrite(self._weights(individual))

    def _weights(self, individual: Individual) -> Weights:
        return individual.weights if isinstance(individual, VectorIndividual) else self._mix(individual)

    def _mix(self, pieces: Pieces) -> Weights:
        """Return the weights of pieces, float32 of shape (weights,), computed in float32 and added source by source."""
        vectors = self._models.vectors
        ends = self._grams.weights_before(pieces.ends)
        lengths = ends.copy()
        lengths[1:] -= ends[:-1]
        factors = pieces.coefficients[: len(vectors)].astype(np.float32)
        if ends[-1] < SHORT * len(ends):
            mixed: Weights = factors[0].repeat(lengths)
            mixed *= vectors[0]
            for row, vector in zip(factors[1:], vectors[1:], strict=True):
                term = row.repeat(lengths)
                term *= vector
                mixed += term
        else:
            mixed = np.zeros(vectors.shape[1], dtype=np.float32)
            for start, stop, column in zip(ends - lengths, ends, factors.T, strict=True):
                for factor, vector in zip(column, vectors, strict=True):
                    if factor:
                        mixed[start:stop] += factor * vector[start:stop]
        for seed, scales in zip(pieces.seeds, pieces.coefficients[len(vectors) :], strict=True):
            mixed += (scales.repeat(lengths) * noise(seed, 0, len(mixed))).astype(np.float32)
        return mixed


def _grams(models: StateDicts) -> Grams:
    sums = BlockGrams(len(models.vectors), models.num_weights)
    for start in range(0, models.num_weights, STRETCH):
        sums.add([vector[start : start + STRETCH] for vector in models.vectors])
    return Grams.of_blocks(models.aliases, {WHOLE: (models.num_weights, sums.result())})


class _Remembering(PiecewiseSpace):
    """A piecewise space that does not read the genome of an individual that it has just made."""

    def __init__(self, grams: Grams, *, sources: Mapping[str, SourceConfig], chunks: int) -> None:
        self._made: dict[int, tuple[Genome, Pieces]] = {}
        super().__init__(SpaceConfig(kind="piecewise", chunks=chunks), grams, sources=sources, dtype="float32")

    def genome(self, individual: Pieces) -> Genome:
        genome = super().genome(individual)
        self._made[id(genome)] = (genome, individual)
        if len(self._made) > REMEMBERED:
            del self._made[next(iter(self._made))]
        return genome

    def individual(self, genome: Genome) -> Pieces:
        # A genome that is remembered is alive, so that no other has its id.
        known = self._made.get(id(genome))
        return super().individual(genome) if known is None else known[1]
