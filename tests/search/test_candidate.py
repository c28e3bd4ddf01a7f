"""Candidates: what makes two of them equal, and when a recipe is decoded."""

from dataclasses import replace

import pytest

from evomerge.recipe import Recipe
from evomerge.search import Candidate
from evomerge.search.ledger import Ledger
from evomerge.spaces.types import Genome
from evomerge.testing.spaces import BoxSpace


class CountingSpace(BoxSpace):
    """A space that counts how often it decodes."""

    decoded = 0

    def decode(self, genome: Genome) -> Recipe:
        self.decoded += 1
        return super().decode(genome)


def test_a_recipe_is_decoded_once_and_only_when_it_is_looked_at() -> None:
    space = CountingSpace()
    candidate = Ledger(space).issue(space.start, origin="test")
    assert space.decoded == 0
    assert candidate.recipe is candidate.recipe
    assert space.decoded == 1
    assert candidate.recipe == BoxSpace().decode(space.start)


def test_candidates_are_equal_by_what_the_journal_stores() -> None:
    """Looking at a recipe changes nothing, and neither does who would decode it."""
    space = BoxSpace()
    one, other = (Ledger(space).issue(space.start, origin="test") for _ in range(2))
    assert one.recipe.base == "base"
    assert one == other
    assert one == replace(one, decode=CountingSpace().decode)
    for change in ({"id": 1}, {"genome": ()}, {"parents": (0,)}, {"origin": "else"}, {"generation": 1}):
        assert replace(one, **change) != one


def test_a_candidate_cannot_be_changed() -> None:
    space = BoxSpace()
    with pytest.raises(AttributeError):
        Candidate(0, space.start, space.decode).id = 1  # type: ignore[misc]
