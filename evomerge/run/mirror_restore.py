"""From a mirror back to a run folder; what is in the folder is never taken away."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from evomerge.errors import JournalError, StateError
from evomerge.run.events import Event
from evomerge.run.folder import CONFIG, ENVIRONMENT, JOURNAL, RunFolder
from evomerge.run.journal import JournalReader
from evomerge.run.mirror_store import FILE_KEYS, MirrorStore
from evomerge.run.storage import storage_errors, write_atomically


def restore(store: MirrorStore, path: Path) -> int:
    """Bring a run folder up to its mirror, and return how many lines of the journal came from there.

    Nothing happens where the folder is as far as the mirror, or farther. Hold the leases of both.

    Args:
        store: the mirror.
        path: the run folder; it exists and may be empty.

    Raises:
        StateError: when folder and mirror are two runs, or one run that was continued in two places; or when the
            mirror is damaged.
        StorageError: when the mirror cannot be read, or the disk refuses.
    """
    config = store.get(CONFIG)
    if config is None:
        if store.segments():
            raise StateError(f"--mirror {store.shown}: {CONFIG} is missing there; restore it from another copy")
        return 0
    own = path / CONFIG
    if not own.exists():
        RunFolder.check_strangers(path)
    elif own.read_bytes() != config:
        raise StateError(f"{path}: the run mirrored at {store.shown} is another one; give the address of this run")
    brought = _restore_journal(store, path)
    if not own.exists():
        # Last, because it makes the folder a run: what a crash before it leaves can be restored again.
        environment = store.get(ENVIRONMENT)
        if environment is not None:
            write_atomically(path / ENVIRONMENT, environment)
        write_atomically(own, config)
    return brought


def _restore_journal(store: MirrorStore, path: Path) -> int:
    own = _own_lines(path / JOURNAL)
    parts = store.segments()
    there = parts[-1].last if parts else 0
    common = min(len(own), there)
    # The checksums chain the lines, so one line that is the same says that all before it are.
    wanted = [part for part in parts if part.last >= max(common, 1)]
    lines = store.lines(wanted)
    skipped = wanted[0].first - 1 if wanted else 0
    if common and lines[common - 1 - skipped] != own[common - 1]:
        raise _diverged(store, path, own[-1], lines[-1], (len(own), there))
    new = lines[len(own) - skipped :] if there > len(own) else []
    if new:
        _write_journal(store, path, [*own, *new])
    return len(new)


def _own_lines(journal: Path) -> list[bytes]:
    """Return the lines of a journal without a torn end; whoever opens it checks them all."""
    lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    while lines and not _is_whole(lines[-1]):
        lines.pop()
    return lines


def _is_whole(line: bytes) -> bool:
    try:
        return "checksum" in json.loads(line)
    except (ValueError, TypeError):
        return False


def _diverged(store: MirrorStore, path: Path, here: bytes, there: bytes, lengths: tuple[int, int]) -> StateError:
    times = [str(json.loads(line).get("time")) for line in (here, there)]
    newer = "this folder" if times[0] > times[1] else "the mirror"
    return StateError(
        f"{path}: this folder ({lengths[0]} lines, the last of {times[0]}) and its mirror {store.shown} ({lengths[1]} "
        f"lines, the last of {times[1]}) went on separately, and {newer} is newer; to continue the mirror's give "
        "another folder, to continue this one give another --mirror"
    )


def _write_journal(store: MirrorStore, path: Path, lines: list[bytes]) -> None:
    """Check a journal, fetch the files that it names, then put it in its place."""
    data = b"".join(line + b"\n" for line in lines)
    draft = path / f".{JOURNAL}.tmp"
    with storage_errors(draft, "writing"):
        draft.write_bytes(data)
    try:
        events = JournalReader(draft).poll()
    except JournalError as error:
        raise StateError(f"--mirror {store.shown}: the journal there is damaged ({error})") from None
    finally:
        draft.unlink(missing_ok=True)
    if len(events) != len(lines):
        raise StateError(f"--mirror {store.shown}: the journal there is damaged (line {len(events) + 1} is broken)")
    _fetch(store, path, events)
    write_atomically(path / JOURNAL, data)


def _fetch(store: MirrorStore, path: Path, events: list[Event]) -> None:
    folder = RunFolder(path)
    named = [getattr(event, key, None) for event in events for key in FILE_KEYS]
    names = {name: folder.inside(name) for name in named if name is not None}
    missing = [name for name, own in names.items() if not own.exists()]
    for name, data in store.get_all(missing):
        own = names[name]
        if hashlib.sha256(data).hexdigest() != own.stem:
            raise StateError(f"--mirror {store.shown}: {name} was changed there; restore it from another copy")
        with storage_errors(own, "writing"):
            own.parent.mkdir(parents=True, exist_ok=True)
            draft = own.with_name(f".{own.name}.tmp")
            draft.write_bytes(data)
            draft.replace(own)
    if missing:
        os.sync()  # once for all of them, before the journal that names them
