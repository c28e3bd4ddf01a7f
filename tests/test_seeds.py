"""Random numbers that belong to a seed, a purpose and an identity."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.seeds import Draws, derive, splitmix64


def test_the_words_are_those_of_splitmix64() -> None:
    """The first outputs of Vigna's C code for the seed 1234567."""
    draws = Draws(0, 0)
    draws._word = 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draws._next() for _ in expected] == expected
    assert [splitmix64(1234567, place) for place in range(4)] == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 2**40))
def test_draws_are_in_range_and_a_function_of_key_and_identity(key: int, identity: int, below: int) -> None:
    one, same, other = Draws(key, identity), Draws(key, identity), Draws(key, identity + 1)
    numbers = [one.random() for _ in range(3)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert numbers == [same.random() for _ in range(3)] != [other.random() for _ in range(3)]
    assert 0 <= one.integer(below) < below


@pytest.mark.parametrize("first", [0, 1000])
def test_draws_are_uniform_over_identities(first: int) -> None:
    """Each of ten shares gets a tenth of 20,000 to within five standard deviations (212)."""
    key = derive(7, "test")
    draws = [Draws(key, identity) for identity in range(first, first + 20_000)]
    for counts in (Counter(each.integer(10) for each in draws), Counter(int(10 * each.random()) for each in draws)):
        assert sorted(counts) == list(range(10))
        assert all(abs(count - 2000) < 212 for count in counts.values())
