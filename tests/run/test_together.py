"""Events that share one fsync: all or a beginning of them is there, and nothing is told before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import JournalError, StorageError
from evomerge.run import journal as module
from evomerge.run.events import Asked, Event
from evomerge.run.journal import MAX_TOGETHER, JournalWriter, read_journal
from tests.run.test_journal import FullDisk


def asked(number: int, padding: int = 0) -> Asked:
    return Asked(candidate=number, recipe_id="ab" * 32, genome=(0.5, "x" * padding))


def append_some(journal: JournalWriter) -> None:
    for number in range(1, 6):
        journal.append(asked(number))


def append_and_be_interrupted(journal: JournalWriter) -> None:
    journal.append(asked(0))
    raise KeyboardInterrupt


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by a descriptor with every fsync of the journal."""
    seen: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(module.os, "fsync", fsync)
    return seen


def test_events_together_reach_the_disk_with_one_fsync_and_are_those_of_single_appends(
    tmp_path: Path, syncs: list[int]
) -> None:
    path, ticks = tmp_path / "journal.jsonl", iter(range(100))
    with JournalWriter(path, clock=lambda: f"2025-01-01T00:00:{next(ticks):02d}Z") as journal:
        first = journal.append(asked(0))
        syncs.clear()
        with journal.together():
            written = [journal.append(asked(number)) for number in range(1, 20)]
            assert [event.seq for event in written] == list(range(2, 21))
            assert read_journal(path) == [first]
            assert not syncs
        assert len(syncs) == 1
        last = journal.append(asked(20))
        assert len(syncs) == 2
    assert read_journal(path) == [first, *written, last]
    alone, ticks = tmp_path / "alone.jsonl", iter(range(100))
    with JournalWriter(alone, clock=lambda: f"2025-01-01T00:00:{next(ticks):02d}Z") as journal:
        for number in range(21):
            journal.append(asked(number))
    assert alone.read_bytes() == path.read_bytes()


def test_what_events_refer_to_is_made_to_last_first(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    found: list[int] = []
    with JournalWriter(path) as journal:
        with journal.together(lambda: found.append(len(read_journal(path)))):
            journal.append(asked(0))
        assert found == [0]
        with journal.together(lambda: found.append(len(read_journal(path)))):
            pass  # nothing was appended, so there is nothing to make last
    assert found == [0]
    assert len(read_journal(path)) == 1


def test_where_that_fails_no_event_is_journaled_and_the_writer_is_closed(tmp_path: Path) -> None:
    def fails() -> None:
        raise StorageError("the folder of the scores cannot be synced")

    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal:
        kept = journal.append(asked(0))
        with pytest.raises(StorageError, match="cannot be synced"), journal.together(fails):
            journal.append(asked(1))
        with pytest.raises(JournalError, match="closed; resume the run"):
            journal.append(asked(2))
    assert read_journal(path) == [kept]


def test_an_exception_within_loses_nothing_that_was_appended_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal:
        with pytest.raises(KeyboardInterrupt), journal.together():
            append_and_be_interrupted(journal)
        assert [event.seq for event in read_journal(path)] == [1]
        journal.append(asked(1))
    assert len(read_journal(path)) == 2


def test_blocks_within_blocks_end_with_the_outer_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal, journal.together():
        journal.append(asked(0))
        with journal.together():
            journal.append(asked(1))
        assert read_journal(path) == []
    assert len(read_journal(path)) == 2


def test_many_events_are_written_in_portions(tmp_path: Path, syncs: list[int]) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal:
        syncs.clear()
        with journal.together():
            for number in range(20):
                journal.append(asked(number, padding=MAX_TOGETHER // 8))
            assert 0 < len(read_journal(path)) < 20
    assert len(read_journal(path)) == 20
    assert 3 <= len(syncs) <= 4


@given(room=st.integers(0, 900))
@settings(max_examples=30, deadline=None)
def test_a_disk_that_fills_within_takes_none_of_them(tmp_path_factory: pytest.TempPathFactory, room: int) -> None:
    path = tmp_path_factory.mktemp("full") / "journal.jsonl"
    with JournalWriter(path) as journal:
        kept = journal.append(asked(0))
    with JournalWriter(path, opener=lambda place: FullDisk(place, room)) as journal:
        with pytest.raises(StorageError, match="No space left"), journal.together():
            append_some(journal)
        with pytest.raises(JournalError, match="closed"):
            journal.append(asked(6))
    assert read_journal(path) == [kept]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Return a journal whose last thirty events share one fsync, and where these begin."""
    path = tmp_path_factory.mktemp("grouped") / "journal.jsonl"
    with JournalWriter(path) as journal:
        for number in range(3):
            journal.append(asked(number))
        start = path.stat().st_size
        with journal.together():
            for number in range(3, 33):
                journal.append(asked(number))
    return path.read_bytes(), start


def reopened(path: Path) -> list[Event]:
    """Return what a writer finds, after it has appended one more event and read all of them back."""
    with JournalWriter(path) as journal:
        events = list(journal.events)
        assert read_journal(path) == events
        events.append(journal.append(asked(len(events))))
    assert read_journal(path) == events
    return events[:-1]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_killed_at_any_byte_of_the_write_a_beginning_of_them_is_there(
    grouped: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, start = grouped
    size = data.draw(st.integers(start, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    path.write_bytes(whole[:size])
    assert len(reopened(path)) == whole[:size].count(b"\n")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_power_cut_that_leaves_any_pages_of_the_write_unwritten_leaves_a_beginning_of_them(
    grouped: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole, start = grouped
    torn = bytearray(whole)
    page = 1024
    last = (len(whole) - 1) // page
    lost = data.draw(st.sets(st.integers(start // page, last), min_size=1))
    for number in lost:
        begin, end = max(start, number * page), min(len(whole), (number + 1) * page)
        torn[begin:end] = bytes(end - begin)
    path = tmp_path_factory.mktemp("power") / "journal.jsonl"
    path.write_bytes(bytes(torn))
    intact = max(start, min(lost) * page)
    events = reopened(path)
    assert len(events) == whole[:intact].count(b"\n")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


def test_a_zero_byte_in_an_old_line_is_a_change_and_no_torn_write(grouped: tuple[bytes, int], tmp_path: Path) -> None:
    whole, _ = grouped
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole[:40] + b"\0" + whole[41:])
    with pytest.raises(JournalError, match=r"journal\.jsonl:1: broken line"):
        JournalWriter(path)


def test_zeros_with_more_behind_them_than_one_write_takes_are_a_change(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal, journal.together():
        for number in range(40):
            journal.append(asked(number, padding=MAX_TOGETHER // 16))
    whole = path.read_bytes()
    path.write_bytes(bytes(512) + whole[512:])
    with pytest.raises(JournalError, match=r"journal\.jsonl:1: broken line"):
        read_journal(path)
