"""Splits: by the content of each document, whatever the order."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.fitness.config import SplitsConfig
from evomerge.fitness.splits import assign, document_hash, split_of

SHARES = SplitsConfig(search=0.5, validation=0.2, test=0.3)
DOCUMENTS = [{"question": f"{number}", "answer": number % 7} for number in range(400)]


def test_the_hash_is_that_of_the_canonical_json() -> None:
    """SHA-256 of `{"a":[1,2.5],"b":"か"}` in UTF-8, whatever the order of the keys."""
    import hashlib

    expected = hashlib.sha256('{"a":[1,2.5],"b":"か"}'.encode()).hexdigest()
    assert document_hash({"b": "か", "a": [1, 2.5]}) == expected


@given(st.permutations(range(60)))
def test_order_does_not_matter(order: list[int]) -> None:
    digests = [document_hash(document) for document in DOCUMENTS[:60]]
    plain = assign("t", digests, SHARES)
    moved = assign("t", [digests[index] for index in order], SHARES)
    for name, positions in moved.items():
        assert {order[position] for position in positions} == set(plain[name])
        assert list(positions) == sorted(positions)


def test_more_documents_leave_the_others_where_they_are() -> None:
    digests = [document_hash(document) for document in DOCUMENTS]
    few, many = assign("t", digests[:100], SHARES), assign("t", digests, SHARES)
    for name in few:
        assert set(few[name]) == {position for position in many[name] if position < 100}


def test_shares_are_about_kept() -> None:
    parts = assign("t", [document_hash(document) for document in DOCUMENTS], SHARES)
    assert sum(len(part) for part in parts.values()) == 400
    for name, share in (("search", 0.5), ("validation", 0.2), ("test", 0.3)):
        # five standard deviations of a binomial count
        assert abs(len(parts[name]) - 400 * share) < 5 * (400 * share * (1 - share)) ** 0.5  # type: ignore[index]


def test_a_split_without_a_share_is_empty() -> None:
    parts = assign(
        "t", [document_hash(document) for document in DOCUMENTS], SplitsConfig(search=1, validation=0, test=0)
    )
    assert (len(parts["search"]), parts["validation"], parts["test"]) == (400, (), ())


def test_the_last_document_of_the_interval_has_a_split() -> None:
    assert split_of("f" * 64, SHARES) == "test"
    assert split_of("f" * 64, SplitsConfig(search=0.7, validation=0.3, test=0)) == "validation"
    assert split_of("0" * 64, SHARES) == "search"


def test_too_few_documents_for_a_split_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"task 't': the (search|validation|test) split has [01] of 3 documents"):
        assign("t", [document_hash(document) for document in DOCUMENTS[:3]], SHARES)


def test_documents_may_hold_what_data_sets_hold() -> None:
    document = {
        "day": dt.date(2024, 1, 2),
        "bytes": b"abc",
        "vector": np.arange(3),
        "number": np.float64(0.5),
        "tags": {"b", "a"},
    }
    assert document_hash(document) == document_hash(dict(reversed(document.items())))
    assert document_hash({"vector": np.arange(3)}) == document_hash({"vector": [0, 1, 2]})


def test_a_document_without_a_plain_form_is_an_error() -> None:
    with pytest.raises(ConfigError, match="object, which has no plain form"):
        document_hash({"image": object()})
