from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import JournalError, StorageError
from evomerge.run.events import (
    KINDS,
    Asked,
    Budget,
    Evaluated,
    Event,
    Exported,
    Finished,
    Held,
    Paused,
    Reference,
    Resumed,
    Retried,
    SourceRecord,
    Started,
    Stopped,
    Workers,
    from_plain,
    to_plain,
)
from evomerge.run.journal import JournalReader, JournalWriter, follow, read_journal

ASKED = Asked(candidate=0, recipe_id="ab" * 32, genome=(0.1, 3, "ties", None, True), parents=(), origin="start")
EVERY_KIND: list[Event] = [
    Started(
        config_digest="d",
        version="0",
        sources={"base": SourceRecord(content_hash="h", num_layers=4)},
        objectives=("a.b", "-c.d"),
    ),
    Resumed(pid=1, host="here", elapsed_s=1.5),
    ASKED,
    Evaluated(
        candidate=0,
        recipe_id="ab" * 32,
        split="search",
        state="feasible",
        objectives={"a.b": 0.1 + 0.2, "-c.d": -1e-300},
        stderr={"a.b": 0.01, "-c.d": 0.0},
        samples={"a.b": 10, "-c.d": 7},
        scores="scores/x.safetensors",
        worker="w0",
        seconds={"score": 0.25},
    ),
    Retried(candidate="parent:math", split="test", attempt=1, reason="it died", worker="w1"),
    Reference(name="uniform", recipe_id="cd" * 32, recipe={"recipe": 1, "名": [1.5, None, {"checksum": 1}]}),
    Budget(changes={"evaluations": 200, "hours": 1.5, "target": None}),
    Workers(workers=3, command="c1"),
    Held(source="math", weight=0.5, command="c2"),
    Paused(reason="asked", elapsed_s=2),
    Stopped(reason="asked", elapsed_s=3),
    Finished(reason="budget", elapsed_s=4),
    Exported(candidate="uniform", out="model"),
]


def plain(events: list[Event]) -> list[dict[str, object]]:
    return [to_plain(event) for event in events]


def write(path: Path, events: list[Event]) -> list[Event]:
    with JournalWriter(path) as journal:
        return [journal.append(event) for event in events]


def test_every_kind_of_event_is_covered_here() -> None:
    assert {event.kind for event in EVERY_KIND} == set(KINDS)


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: event.kind)
def test_an_event_survives_its_plain_form(event: Event) -> None:
    assert from_plain(to_plain(event)) == event


def test_appended_events_are_read_back_with_sequence_numbers_from_one_and_utc_times(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written = write(path, EVERY_KIND)
    read = read_journal(path)
    assert plain(read) == plain(written)
    assert [event.seq for event in read] == list(range(1, len(EVERY_KIND) + 1))
    assert all(event.time.endswith("Z") and event.timestamp > 0 for event in read)
    genome = read[2].genome  # type: ignore[attr-defined]
    assert [type(value) for value in genome] == [float, int, str, type(None), bool]


genes = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.text(),
    st.none(),
)


@given(genome=st.lists(genes, max_size=6), origin=st.text(st.characters()))
@settings(max_examples=60, deadline=None)
def test_any_genome_and_text_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, genome: list[float | int | bool | str | None], origin: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    genome = [gene.encode("utf-8", "replace").decode() if isinstance(gene, str) else gene for gene in genome]
    written = write(path, [Asked(candidate=0, recipe_id="r", genome=tuple(genome), origin=origin)])
    read = read_journal(path)
    assert read == written
    assert repr(read[0].genome) == repr(tuple(genome))  # type: ignore[attr-defined]


def test_undecodable_text_in_a_reason_does_not_stop_the_journal(tmp_path: Path) -> None:
    reason = os.fsdecode(b"no file \xff")
    written = write(tmp_path / "j", [Retried(candidate=0, split="search", attempt=1, reason=reason, worker="w")])
    assert read_journal(tmp_path / "j") == written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "journal.jsonl"
    write(path, EVERY_KIND)
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_truncation_leaves_a_journal_that_reads_and_appends(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    path.write_bytes(whole[:size])
    kept = whole[:size].count(b"\n")
    before = read_journal(path)
    assert len(before) == kept
    assert path.read_bytes() == whole[:size]
    with JournalWriter(path) as journal:
        assert list(journal.events) == before
        assert journal.dropped_bytes == size - len(b"".join(whole.splitlines(keepends=True)[:kept]))
        last = journal.append(Paused(reason="again", elapsed_s=1))
    assert read_journal(path) == [*before, last]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_before_the_last_line_is_noticed(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start_of_last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    place = data.draw(st.integers(0, start_of_last - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    path = tmp_path_factory.mktemp("flip") / "journal.jsonl"
    path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    line = whole[:place].count(b"\n") + 1
    with pytest.raises(JournalError, match=rf"journal\.jsonl:{line}: .*restore it from a copy"):
        read_journal(path)
    with pytest.raises(JournalError):
        JournalWriter(path)
    assert len(path.read_bytes()) == len(whole)


def test_any_changed_byte_of_the_last_line_never_shows_a_wrong_event(whole: bytes, tmp_path: Path) -> None:
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    path = tmp_path / "journal.jsonl"
    for place in range(start, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert len(read_journal(path)) == len(EVERY_KIND) - 1


@pytest.mark.parametrize("change", ["removed", "swapped", "repeated"])
def test_a_removed_swapped_or_repeated_line_is_noticed(whole: bytes, tmp_path: Path, change: str) -> None:
    lines = whole.splitlines(keepends=True)
    changed = {
        "removed": [*lines[:3], *lines[4:]],
        "swapped": [*lines[:3], lines[4], lines[3], *lines[5:]],
        "repeated": [*lines[:4], *lines[3:]],
    }[change]
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(changed))
    with pytest.raises(JournalError, match=r":[45]: broken line: its checksum"):
        read_journal(path)


def test_a_last_line_of_zeros_is_dropped_as_torn(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole + b"\0" * 80)
    with JournalWriter(path) as journal:
        assert (len(journal.events), journal.dropped_bytes) == (len(EVERY_KIND), 80)
    assert path.read_bytes() == whole


def forge(path: Path, data: dict[str, object]) -> None:
    """Write a first line whose checksum is right."""
    from evomerge.run.lines import chain, dump

    path.write_text(dump({**data, "checksum": chain("", data)}) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"event": "askd"}, "unknown event 'askd'; did you mean 'asked'"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"candidate": "zero"}, "asked.candidate: "),
        ({"seq": 7}, "seq is 7, expected 1"),
    ],
)
def test_a_whole_line_that_this_version_does_not_know_is_an_error_and_not_torn(
    tmp_path: Path, change: dict[str, object], text: str
) -> None:
    path = tmp_path / "journal.jsonl"
    forge(path, {**to_plain(ASKED), "seq": 1, "time": "2025-01-01T00:00:00Z", **change})
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"journal\.jsonl:1: ") as error:
        JournalWriter(path)
    assert text in str(error.value)
    assert path.read_bytes() == before


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    forge(path, {**to_plain(EVERY_KIND[0]), "seq": 1, "time": "2025-01-01T00:00:00Z", "journal": 2})
    with pytest.raises(JournalError, match="version 2, this evomerge reads 1"):
        read_journal(path)


def test_a_missing_journal_is_an_error_for_readers(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no such file"):
        read_journal(tmp_path / "journal.jsonl")


def test_an_event_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal:
        for broken in ({"genome": (float("nan"),)}, {"candidate": -1}, {"origin": "\udc80"}):
            with pytest.raises(JournalError, match="cannot be journaled"):
                journal.append(ASKED.model_copy(update=broken))
        written = journal.append(ASKED)
    assert read_journal(path) == [written]


def test_a_closed_journal_takes_no_events(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path / "j")
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append(ASKED)


class FullDisk:
    """A file on a disk with room for so many bytes; `files.truncate` may fail too."""

    def __init__(self, path: Path, room: int, *, truncates: bool = True) -> None:
        self.file = path.open("ab", buffering=0)
        self.room = room
        self.truncates = truncates

    def write(self, data: bytes, /) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def truncate(self, size: int, /) -> int:
        if not self.truncates:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.file.truncate(size)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


def append_for_ever(journal: JournalWriter, written: list[Event]) -> None:
    while True:
        written.append(journal.append(ASKED))


@given(room=st.integers(0, 700), truncates=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_full_disk_is_a_storage_error_and_the_journal_stays_valid(
    tmp_path_factory: pytest.TempPathFactory, room: int, truncates: bool
) -> None:
    path = tmp_path_factory.mktemp("full") / "journal.jsonl"
    disks: list[FullDisk] = []

    def opener(place: Path) -> FullDisk:
        disks.append(FullDisk(place, room, truncates=truncates))
        return disks[-1]

    written: list[Event] = []
    with JournalWriter(path, opener=opener) as journal:
        with pytest.raises(StorageError, match=r"journal\.jsonl: journaling failed \(No space left on device\)"):
            append_for_ever(journal, written)
        assert read_journal(path) == written
        if truncates:
            disks[0].room = 10_000
            written.append(journal.append(ASKED))
        else:
            with pytest.raises(JournalError, match="closed"):
                journal.append(ASKED)
    with JournalWriter(path) as journal:
        written.append(journal.append(ASKED))
    assert read_journal(path) == written


def test_an_interrupt_while_writing_leaves_no_half_line(tmp_path: Path) -> None:
    class Interrupted(FullDisk):
        def write(self, data: bytes, /) -> int:
            if self.room == 0:
                self.room = 10_000
                raise KeyboardInterrupt
            return super().write(data)

    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, opener=lambda place: Interrupted(place, 50)) as journal:  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            journal.append(ASKED)
        assert path.read_bytes() == b""
        written = journal.append(ASKED)
    assert read_journal(path) == [written]


def test_the_operating_system_refusing_bytes_is_a_storage_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse, in a process of its own."""
    script = """
        import resource, sys
        from pathlib import Path
        from evomerge.errors import StorageError
        from evomerge.run.events import Paused
        from evomerge.run.journal import JournalWriter, read_journal

        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        path, count = Path(sys.argv[1]), 0
        with JournalWriter(path) as journal:
            try:
                while True:
                    journal.append(Paused(reason="r", elapsed_s=count))
                    count += 1
            except StorageError:
                assert len(read_journal(path)) == count > 0
                assert path.read_bytes().endswith(b"\\n")
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "journal.jsonl")],
        check=True,
        timeout=60,
    )


WRITER = """
    import sys
    from pathlib import Path
    from evomerge.run.events import Paused
    from evomerge.run.journal import JournalWriter

    with JournalWriter(Path(sys.argv[1])) as journal:
        print("ready", flush=True)
        while True:
            event = journal.append(Paused(reason="x" * 3000, elapsed_s=1))
            print(event.seq, flush=True)
"""


def test_sigkill_at_random_instants_never_loses_an_acknowledged_event(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    instants = random.Random(0)  # noqa: S311
    acknowledged = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(instants.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            # A number cut short by the kill was acknowledged too, but says nothing.
            numbers = [line for line in process.stdout if line.endswith("\n")]
        acknowledged = max(acknowledged, int(numbers[-1]) if numbers else 0)
        assert len(read_journal(path)) >= acknowledged
    with JournalWriter(path) as journal:
        assert journal.append(ASKED).seq == journal.num_found + 1
    assert acknowledged > 0


def test_a_reader_sees_events_as_they_come_and_waits_for_unfinished_lines(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    reader, seen = JournalReader(path), 0
    path.write_bytes(b"")
    for end in itertools.chain(range(0, len(whole), 97), [len(whole)]):
        path.write_bytes(whole[:end])
        seen += len(reader.poll())
        assert seen == whole[:end].count(b"\n")
    assert seen == len(EVERY_KIND)


def test_follow_yields_new_events_until_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path) as journal:
        turns = iter([True, True, False])

        def wait() -> bool:
            journal.append(ASKED)
            return next(turns)

        assert [len(events) for events in follow(path, wait)] == [0, 1, 1]


def test_a_journal_that_became_shorter_while_followed_is_an_error(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(whole)
    reader = JournalReader(path)
    reader.poll()
    path.write_bytes(whole[:10])
    with pytest.raises(JournalError, match="became shorter"):
        reader.poll()
