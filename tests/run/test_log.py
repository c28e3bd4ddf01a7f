"""Events that are looked up in the journal's file instead of being kept in memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import JournalError
from evomerge.run.events import Asked, Event, Started
from evomerge.run.journal import JournalReader, JournalWriter, read_journal
from evomerge.run.recall import Recall

COUNT = 600
"""More than are read at once."""


def asked(number: int) -> Asked:
    return Asked(candidate=number, recipe_id=f"{number:064x}", genome=(number / 7, "tiës"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with `COUNT` candidates."""
    path = tmp_path_factory.mktemp("log") / "journal.jsonl"
    with JournalWriter(path) as journal, journal.together():
        journal.append(Started(config_digest="d", version="1", sources={}, objectives=("a",)))
        for number in range(COUNT):
            journal.append(asked(number))
    return path


def test_what_is_looked_up_is_what_was_read(written: Path) -> None:
    reader = JournalReader(written)
    events = reader.poll()
    log = reader.events
    assert list(log) == events
    assert (len(log), log[0], log[-1], log[300]) == (len(events), events[0], events[-1], events[300])
    assert log[590:] == events[590:]
    with pytest.raises(IndexError):
        log[len(events)]


def test_what_waits_for_the_disk_can_be_looked_up(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "j") as journal:
        journal.append(Started(config_digest="d", version="1", sources={}, objectives=("a",)))
        with journal.together():
            waiting = [journal.append(asked(number)) for number in range(3)]
            assert len(read_journal(tmp_path / "j")) == 1
            assert list(journal.events)[1:] == waiting == journal.events[1:]
        assert journal.events[1:] == waiting


def test_a_file_that_was_changed_meanwhile_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    reader = JournalReader(path)
    reader.poll()
    path.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(JournalError, match=r"journal\.jsonl:6: the file was changed after it was read"):
        reader.events[5]
    path.unlink()
    with pytest.raises(JournalError, match="cannot be read"):
        reader.events[5]


@given(st.permutations([*range(6), "uniform", "parent:math"]))
def test_keys_come_in_the_order_of_the_journal_and_asking_for_one_reads_nothing(order: list[int | str]) -> None:
    events: list[Event] = [asked(number) for number in range(len(order))]
    recall: Recall[int | str, Asked] = Recall(events)
    for place, who in enumerate(order):
        assert who not in recall
        recall.put(who, place)
        assert who in recall
    assert (list(recall), len(recall)) == (order, len(order))
    assert [recall[who].candidate for who in recall] == list(range(len(order)))
    assert all(first.candidate < second.candidate for first, second in pairwise(recall.values()))
    assert recall.get(99) is None
    assert recall.get("math") is None
    blind: Recall[int | str, Asked] = Recall([])
    blind.put(3, 0)
    assert 3 in blind
    assert 2 not in blind
