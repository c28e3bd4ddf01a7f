from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evomerge.errors import RunHeldError
from evomerge.run.lease import HOLDER_NAME, Lease, is_held, read_holder

HOLD = """
    import sys, time
    from pathlib import Path
    from evomerge.run.lease import Lease

    with Lease(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_coordinator_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    with Lease(tmp_path), pytest.raises(RunHeldError) as error:
        Lease(tmp_path).acquire()
    assert f"held by process {os.getpid()} on {socket.gethostname()}, since 20" in str(error.value)
    assert error.value.exit_code == 3


def test_a_released_lease_can_be_taken_again_and_leaves_no_note(tmp_path: Path) -> None:
    for _ in range(2):
        with Lease(tmp_path) as lease:
            assert lease.held
            assert is_held(tmp_path)
            holder = read_holder(tmp_path)
            assert holder is not None
            assert holder.pid == os.getpid()
        assert not lease.held
        assert not is_held(tmp_path)
        assert read_holder(tmp_path) is None


def test_the_note_is_readable_by_people(tmp_path: Path) -> None:
    with Lease(tmp_path):
        assert set(json.loads((tmp_path / HOLDER_NAME).read_text())) == {"pid", "host", "since"}


def test_another_process_holds_the_run_until_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(RunHeldError, match=f"process {process.pid} on"):
            Lease(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_held(tmp_path)
    with Lease(tmp_path):
        assert is_held(tmp_path)


def test_asking_whether_a_run_is_held_writes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_readers_that_test_the_lease_do_not_keep_a_coordinator_out(tmp_path: Path) -> None:
    import threading

    with Lease(tmp_path):
        pass
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_held(tmp_path)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with Lease(tmp_path):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_broken_note_does_not_hide_that_the_run_is_held(tmp_path: Path) -> None:
    with Lease(tmp_path):
        (tmp_path / HOLDER_NAME).write_text("{")
        with pytest.raises(RunHeldError, match="another process"):
            Lease(tmp_path).acquire()


def test_releasing_twice_or_without_holding_is_harmless(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    lease.release()
    lease.acquire()
    lease.release()
    lease.release()
    assert not is_held(tmp_path)
