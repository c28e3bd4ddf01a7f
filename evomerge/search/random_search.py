"""Random search: the baseline that every other searcher must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge import seeds
from evomerge.documents import StrictModel
from evomerge.search.genomes import genome_from_unit
from evomerge.search.ledger import Ledger
from evomerge.search.options import parse_options
from evomerge.search.scalar import Scalarize
from evomerge.search.types import Candidate, Outcome
from evomerge.spaces.types import Space


class RandomOptions(StrictModel):
    """Random search has no options."""


class RandomSearch:
    """Independent candidates, uniform in the unit cube (so log-uniform over a log dimension).

    Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 2012. A candidate depends on
    the seed and on its id alone: neither batching nor outcomes change it.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        scalarize: Scalarize = "mean",  # noqa: ARG002  the constructor of every searcher
    ) -> None:
        parse_options(RandomOptions, options)
        self._space = space
        self._seed = seed
        self._ledger = Ledger(space)

    def ask(self, n: int) -> list[Candidate]:
        """Return `n` new candidates."""
        return [self._draw() for _ in range(n)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:  # noqa: ARG002  learns nothing
        """Hear the outcome of a candidate.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
        """
        self._ledger.close(candidate)

    @property
    def finished(self) -> str | None:
        """None: there is always another random candidate."""
        return None

    def status(self) -> dict[str, float | int | str]:
        """Return how many candidates were asked and how many are open."""
        return {"asked": self._ledger.next_id, "open": self._ledger.num_open}

    def _draw(self) -> Candidate:
        rng = seeds.generator(self._seed, "random", self._ledger.next_id)
        unit = rng.random(len(self._space.dimensions))
        return self._ledger.issue(genome_from_unit(self._space, unit), origin="random")
