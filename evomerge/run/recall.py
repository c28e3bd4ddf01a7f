"""Events by candidate, held as places in the journal."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, cast

from evomerge.fitness.types import Split
from evomerge.run.events import CandidateId, Evaluated, Event

WhoT = TypeVar("WhoT", bound=CandidateId)
EventT = TypeVar("EventT", bound=Event)
_NONE = -1


class Recall(Mapping[WhoT, EventT]):
    """Events of one kind by candidate (a number from 0) or reference (a name), in the order of the journal.

    Memory holds a place an event, so that tens of thousands cost little; the event comes from the log when it is
    looked at. Asking whether there is one looks at none.

    Args:
        log: every event of the run.
    """

    def __init__(self, log: Sequence[Event]) -> None:
        self._log = log
        self._numbered = array("q")
        self._named: dict[CandidateId, int] = {}
        self._count = 0

    def put(self, who: WhoT, place: int) -> None:
        """Take note that a new key's event has this place in the log."""
        self._count += 1
        if isinstance(who, int):
            missing = who + 1 - len(self._numbered)
            self._numbered.extend([_NONE] * missing)
            self._numbered[who] = place
        else:
            self._named[who] = place

    def place(self, who: object) -> int | None:
        """Return the place of a key's event in the log, or None."""
        if isinstance(who, int):
            found = self._numbered[who] if 0 <= who < len(self._numbered) else _NONE
            return None if found == _NONE else found
        return self._named.get(who) if isinstance(who, str) else None

    def __getitem__(self, who: WhoT) -> EventT:
        """Return an event, read from the log."""
        place = self.place(who)
        if place is None:
            raise KeyError(who)
        return cast("EventT", self._log[place])

    def __contains__(self, who: object) -> bool:
        """Tell whether there is an event."""
        return self.place(who) is not None

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def __iter__(self) -> Iterator[WhoT]:
        """Yield the keys in the order of the journal."""
        return (who for _, who in self.placed())

    def placed(self) -> list[tuple[int, WhoT]]:
        """Return (place, key) of each event, in the order of the journal."""
        numbered = [(place, who) for who, place in enumerate(self._numbered) if place != _NONE]
        named = [(place, who) for who, place in self._named.items()]
        return cast("list[tuple[int, WhoT]]", sorted([*numbered, *named]))


class Evaluations(Mapping[tuple[CandidateId, Split], Evaluated]):
    """The outcomes of all splits by candidate or reference and split, in the order of the journal.

    Args:
        of_split: those of each split.
    """

    def __init__(self, of_split: Mapping[Split, Recall[CandidateId, Evaluated]]) -> None:
        self._of_split = of_split

    def __getitem__(self, job: tuple[CandidateId, Split]) -> Evaluated:
        """Return an outcome, read from the log."""
        who, split = job
        return self._of_split[split][who]

    def __contains__(self, job: object) -> bool:
        """Tell whether there is an outcome."""
        who, split = cast("tuple[CandidateId, Split]", job)
        return who in self._of_split[split]

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._of_split.values()))

    def __iter__(self) -> Iterator[tuple[CandidateId, Split]]:
        """Yield the keys in the order of the journal."""
        found = [(at, (who, split)) for split, outcomes in self._of_split.items() for at, who in outcomes.placed()]
        return (job for _, job in sorted(found, key=lambda each: each[0]))
