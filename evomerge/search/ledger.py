"""What every searcher keeps about its candidates: ids in the order of asking, and that each is told once."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.search.types import Candidate
from evomerge.spaces.types import Genome, Space


class Ledger:
    """Issues candidates and closes them, once each."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._settle: Callable[[Genome], Genome] | None = getattr(space, "settled", None)
        self._issued = 0
        self._open: dict[int, Candidate] = {}

    @property
    def next_id(self) -> int:
        """The id that the next candidate will have."""
        return self._issued

    @property
    def num_open(self) -> int:
        """How many candidates were asked and not yet told."""
        return len(self._open)

    def issue(
        self,
        genome: Genome,
        *,
        origin: str,
        generation: int = 0,
        parents: tuple[int, ...] = (),
        settled: bool = False,
    ) -> Candidate:
        """Return a new candidate with the next id; its recipe is decoded on demand.

        Where the space holds sources, the genome becomes one in which they are held, unless it is `settled` already.
        """
        if self._settle is not None and not settled:
            genome = self._settle(genome)
        candidate = Candidate(self._issued, genome, self._space.decode, parents, origin, generation)
        self._open[candidate.id] = candidate
        self._issued += 1
        return candidate

    def close(self, candidate: Candidate) -> None:
        """Take note that a candidate was told.

        Raises:
            ValueError: for a candidate that was never asked or was told already.
        """
        known = self._open.get(candidate.id)
        if known is None:
            what = "was told already" if 0 <= candidate.id < self._issued else "was never asked"
            raise ValueError(f"candidate {candidate.id} {what}; tell each asked candidate once")
        if known.genome != candidate.genome:
            raise ValueError(
                f"candidate {candidate.id} was never asked with the genome {candidate.genome!r}; "
                f"tell the candidate that was asked, {known.genome!r}"
            )
        del self._open[candidate.id]
