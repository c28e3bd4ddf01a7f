"""Spaces whose points can be crossed: what a population searcher needs of its individuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from evomerge.spaces.types import Genome, Space

IndividualT = TypeVar("IndividualT")

Angle = Literal["whole", "part"]
"""Whether spherical mixing takes the angle between whole individuals, or between each pair of parts."""


@dataclass(frozen=True, slots=True)
class Chromosome:
    """A part of the weights that is split and crossed on its own."""

    name: str
    """`whole`, or a module group: `attention`, `mlp`, `other`, `embeddings`, `head`, `rest`."""
    size: int
    """Number of weights."""
    positions: int
    """How many split points there are: 0 (all is the second part) to `positions` (all is the first)."""


class BreedingSpace(Space, Protocol[IndividualT]):
    """A space of weight vectors that are mixtures of the sources.

    An individual is immutable and small, whatever the size of the model.
    """

    @property
    def chromosomes(self) -> tuple[Chromosome, ...]:
        """The parts of the weights, in order."""
        ...

    def founders(self) -> tuple[IndividualT, ...]:
        """Return the sources themselves, in order of declaration."""
        ...

    def cross(
        self, first: IndividualT, second: IndividualT, *, splits: Sequence[int], mix: float, angle: Angle
    ) -> IndividualT:
        """Cross two individuals.

        In every chromosome the part before the split is slerp(first, second; mix), the part after it
        slerp(first, second; 1 - mix), where slerp(.; 0) is `first`; nearly parallel vectors (sine of the angle at
        most 1e-6) and nearly opposite ones (at most 0.1) are mixed linearly.

        Args:
            first: parent A.
            second: parent B.
            splits: one split point a chromosome, in [0, positions].
            mix: in [0, 1].
            angle: of the whole individuals, or of each part.
        """
        ...

    def mutate(self, individual: IndividualT, *, seed: int, scale: float) -> IndividualT:
        """Add `scale` times standard normal noise, a function of `seed` and the place of a weight alone."""
        ...

    def genome(self, individual: IndividualT) -> Genome:
        """Return an individual as what the journal stores; `decode` of it gives the recipe."""
        ...

    def individual(self, genome: Genome) -> IndividualT:
        """Return the individual of a genome of this space, also of one that a numeric searcher made."""
        ...
