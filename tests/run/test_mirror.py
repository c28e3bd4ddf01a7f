"""The mirror: a run is copied while it runs, whatever the store does, and continues from there."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest

from evomerge.cli.main import run_command
from evomerge.cluster import InlineExecutor
from evomerge.errors import ConfigError, EvomergeError, RunHeldError, StateError, StorageError
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run import mirror as mirror_module
from evomerge.run.config import RunConfig
from evomerge.run.mirror import mirrored
from evomerge.run.mirror_lease import HOLDER, MirrorLease, Pace
from evomerge.run.mirror_restore import restore
from evomerge.run.mirror_store import MirrorStore
from evomerge.run.problem import Problem
from evomerge.run.replay import verify
from evomerge.run.session import ExecutorFactory, resume, start
from evomerge.run.stopping import stop_idle
from tests.run.s3_server import BUCKET, Fault, S3Server
from tests.run.small import AnalyticScorer, analytic_executor, small_search, write_problem
from tests.run.test_resume import Story, story

QUICK = Pace(every_s=0.01, longest_wait_s=0.05, flush_s=5.0, beat_s=0.05, stale_s=0.3, look_s=0.01)
JOURNAL = "journal.jsonl"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(mirror_module, "PACE", QUICK)
    monkeypatch.setattr(mirror_module, "HURRY_S", 0.3)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        found = S3Server()
        for key, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": found.url,
        }.items():
            patch.setenv(key, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield found
        found.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://{BUCKET}/{uuid.uuid4().hex}/first"
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/there/first"


@pytest.fixture
def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return small_search(write_problem(tmp_path_factory.mktemp("problem")), evaluations=10)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Story:
    path = tmp_path_factory.mktemp("whole") / "run"
    start(config, path, executor=analytic_executor)
    return story(path)


def before_each(act: Callable[[int], None]) -> ExecutorFactory:
    """Return an executor that calls `act` with the number of the evaluation, from 1, before each."""

    class Scorer(AnalyticScorer):
        count = 0

        def score(self, recipe: Recipe, split: Split) -> Evaluation:
            self.count += 1
            act(self.count)
            return super().score(recipe, split)

    def factory(problem: Problem) -> InlineExecutor:
        scorer = Scorer(problem)
        return InlineExecutor(problem.config.executor, lambda: scorer)

    return factory


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


store_at = functools.cache(MirrorStore)  # a client of S3 takes a moment to make


def num_mirrored(url: str) -> int:
    parts = store_at(url).segments()
    return parts[-1].last if parts else 0


def files(path: Path) -> dict[str, bytes]:
    """Return what a run folder holds, without locks."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("coordinator")}


def lines(path: Path) -> list[bytes]:
    return (path / JOURNAL).read_bytes().splitlines()


def bring(url: str, path: Path) -> None:
    """Bring a folder up to its mirror, and nothing else."""
    with mirrored(url, path):
        pass


def test_what_is_restored_is_the_run_to_the_byte(address: str, config: RunConfig, tmp_path: Path) -> None:
    start(config, tmp_path / "run", executor=analytic_executor, mirror=address)
    assert MirrorStore(address).get(HOLDER) is None
    bring(address, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "run")
    assert verify(tmp_path / "copy").open == 0


@pytest.mark.parametrize("fault", ["error", "cut", "killed"])
def test_a_run_whose_copy_failed_midway_continues_from_there_as_if_undisturbed(
    fault: Fault | str, server: S3Server, config: RunConfig, undisturbed: Story, tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def act(count: int) -> None:
        if count == 6:
            eventually(lambda: num_mirrored(url) >= 10)
            if fault == "killed":
                server.stop()
            else:
                server.fault = fault  # type: ignore[assignment]
        if count == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "run", executor=before_each(act), mirror=url)
    if fault == "killed":
        server.start()
    server.fault = "none"
    done = num_mirrored(url)
    assert 10 <= done < len(lines(tmp_path / "run"))

    resume(tmp_path / "copy", executor=analytic_executor, mirror=url)
    verify(tmp_path / "copy")
    assert lines(tmp_path / "copy")[:done] == lines(tmp_path / "run")[:done]
    assert story(tmp_path / "copy") == undisturbed
    assert num_mirrored(url) == len(lines(tmp_path / "copy"))


def test_a_mirror_that_fails_for_a_while_catches_up(
    server: S3Server, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    behind: list[Any] = []

    def act(count: int) -> None:
        if count == 4:
            eventually(lambda: num_mirrored(url) >= 5)
            server.fault = "error"
        if count == 9:
            eventually(lambda: bool(caplog.records))
            server.fault = "none"

    start(
        config,
        tmp_path / "run",
        executor=before_each(act),
        mirror=url,
        observer=lambda figures: behind.append(figures.get("mirror_behind")),
    )
    assert max(behind) > 0
    assert num_mirrored(url) == len(lines(tmp_path / "run"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Internal Server Error" in caplog.text


def test_a_mirror_that_is_gone_for_good_ends_no_run_and_the_end_says_so(
    memory: str, config: RunConfig, undisturbed: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(mirror_module, "PACE", Pace(every_s=0.01, flush_s=0.2, beat_s=0.05))

    def broken(*_: object) -> None:
        raise StorageError("the store is gone")

    def act(count: int) -> None:
        if count == 2:
            monkeypatch.setattr(MirrorStore, "put", broken)

    start(config, tmp_path / "run", executor=before_each(act), mirror=memory)
    assert story(tmp_path / "run") == undisturbed
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("the store is gone; the run goes on")
    assert "lines of the journal are not there (the store is gone" in last


def test_a_mirror_that_hangs_holds_up_nothing(
    memory: str, config: RunConfig, undisturbed: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PACE", Pace(every_s=0.01, flush_s=0.1))
    free = threading.Event()
    put = MirrorStore.put

    def hanging(self: MirrorStore, content: dict[str, bytes]) -> None:
        if HOLDER not in content:
            free.wait(30)
        put(self, content)

    monkeypatch.setattr(MirrorStore, "put", hanging)
    start(config, tmp_path / "run", executor=analytic_executor, mirror=memory)
    assert story(tmp_path / "run") == undisturbed
    assert not free.is_set()
    free.set()
    eventually(lambda: not any(thread.name == "evomerge-mirror" for thread in threading.enumerate()))


def test_whatever_write_is_the_last_the_mirror_is_a_run(
    memory: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[str, bytes]] = []
    put = MirrorStore.put

    def recorded(self: MirrorStore, content: dict[str, bytes]) -> None:
        writes.extend(content.items())
        put(self, content)

    monkeypatch.setattr(MirrorStore, "put", recorded)
    monkeypatch.setattr(mirror_module, "SEGMENT_BYTES", 900)
    start(config, tmp_path / "run", executor=analytic_executor, mirror=memory)
    monkeypatch.undo()
    whole = lines(tmp_path / "run")
    lengths = set()
    store = MirrorStore(f"{memory}-again")
    for place, (name, data) in enumerate(writes):
        store.put({name: data})
        if not name.startswith("journal/"):
            continue
        path = tmp_path / f"copy{place}"
        path.mkdir()
        lengths.add(restore(store, path))
        assert lines(path) == whole[: len(lines(path))]
        if len(lengths) % 6 == 1 or lines(path) == whole:
            verify(path)
    assert len(lengths) > 5
    assert max(lengths) == len(whole)


def killed_session(config: RunConfig, path: Path, url: str, count: int) -> None:
    """Run a coordinator in a process that dies at an evaluation."""

    def act(number: int) -> None:
        if number == count:
            eventually(lambda: num_mirrored(url) > 8)
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: start(config, path, executor=before_each(act), mirror=url)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_coordinator_is_followed_by_one_elsewhere(
    config: RunConfig, undisturbed: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{tmp_path}/there"
    killed_session(config, tmp_path / "run", url, 9)
    resume(tmp_path / "copy", executor=analytic_executor, mirror=url)
    assert "waiting up to 0.3 s for a sign of life of process" in caplog.text
    assert story(tmp_path / "copy") == undisturbed
    verify(tmp_path / "copy")


def test_the_same_folder_of_the_same_machine_waits_for_nobody(
    config: RunConfig, undisturbed: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{tmp_path}/there"
    killed_session(config, tmp_path / "run", url, 9)
    resume(tmp_path / "run", executor=analytic_executor, mirror=url)
    assert "waiting" not in caplog.text
    assert story(tmp_path / "run") == undisturbed
    bring(url, tmp_path / "copy")
    assert lines(tmp_path / "copy") == lines(tmp_path / "run")


def paused_at(count: int) -> ExecutorFactory:
    def act(number: int) -> None:
        if number == count:
            raise KeyboardInterrupt

    return before_each(act)


def begun(config: RunConfig, path: Path, url: str) -> None:
    """Leave a run in the middle, mirrored as far as it is."""
    with pytest.raises(KeyboardInterrupt):
        start(config, path, executor=paused_at(7), mirror=url)
    assert num_mirrored(url) == len(lines(path))


def test_a_folder_that_is_ahead_is_copied_and_one_that_is_behind_brought_up(
    memory: str, config: RunConfig, undisturbed: Story, tmp_path: Path
) -> None:
    begun(config, tmp_path / "run", memory)
    bring(memory, tmp_path / "behind")
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", executor=paused_at(3))
    ahead = lines(tmp_path / "run")
    assert len(ahead) > num_mirrored(memory)
    resume(tmp_path / "run", executor=analytic_executor, mirror=memory)
    assert lines(tmp_path / "run")[: len(ahead)] == ahead
    assert story(tmp_path / "run") == undisturbed
    resume(tmp_path / "behind", executor=analytic_executor, mirror=memory)
    assert lines(tmp_path / "behind")[: len(lines(tmp_path / "run"))] == lines(tmp_path / "run")


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_stop_of_an_idle_run_is_known_wherever_the_mirror_is(
    where: str, memory: str, config: RunConfig, tmp_path: Path
) -> None:
    """Whatever starts runs again by itself, on any machine, does not start this one."""
    begun(config, tmp_path / "run", memory)
    path = tmp_path / ("run" if where == "here" else "other")
    for _ in range(2):
        assert run_command(["stop", str(path), "--mirror", memory]) == 0
        assert num_mirrored(memory) == len(lines(path))
    with pytest.raises(StateError, match="this run was stopped; continue it with `evomerge resume"):
        resume(tmp_path / "scheduled", config=config, executor=analytic_executor, mirror=memory)
    assert lines(tmp_path / "scheduled") == lines(path)
    assert resume(tmp_path / "scheduled", executor=analytic_executor, mirror=memory).ending == "finished"


def test_a_stop_without_the_mirror_reaches_it_with_the_next_session_of_the_folder(
    memory: str, config: RunConfig, tmp_path: Path
) -> None:
    """Even with one that only learns that the run was stopped."""
    begun(config, tmp_path / "run", memory)
    stop_idle(tmp_path / "run")
    assert num_mirrored(memory) == len(lines(tmp_path / "run")) - 1
    with pytest.raises(StateError, match="this run was stopped"):
        resume(tmp_path / "run", config=config, executor=analytic_executor, mirror=memory)
    assert num_mirrored(memory) == len(lines(tmp_path / "run"))


def test_a_run_that_is_held_elsewhere_is_not_stopped_at_its_mirror(
    memory: str, config: RunConfig, tmp_path: Path
) -> None:
    begun(config, tmp_path / "run", memory)
    with mirrored(memory), pytest.raises(RunHeldError, match="pause or stop it there"):
        stop_idle(tmp_path / "run", memory)
    assert num_mirrored(memory) == len(lines(tmp_path / "run"))


@pytest.mark.parametrize("longer", ["folder", "mirror"])
def test_a_run_that_went_on_in_two_places_is_refused_and_left_alone(
    longer: str, memory: str, config: RunConfig, tmp_path: Path
) -> None:
    begun(config, tmp_path / "run", memory)
    bring(memory, tmp_path / "copy")
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run", executor=paused_at(5 if longer == "folder" else 2))
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "copy", executor=paused_at(2 if longer == "folder" else 5), mirror=memory)
    before, there = files(tmp_path / "run"), num_mirrored(memory)
    with pytest.raises(StateError, match=r"went on separately, and the mirror is newer; .* another --mirror"):
        resume(tmp_path / "run", executor=analytic_executor, mirror=memory)
    assert files(tmp_path / "run") == before
    assert num_mirrored(memory) == there


def test_another_runs_mirror_is_refused(memory: str, config: RunConfig, tmp_path: Path) -> None:
    begun(config, tmp_path / "run", memory)
    with pytest.raises(StateError, match="a run is mirrored there already; continue it with"):
        start(config, tmp_path / "other", executor=analytic_executor, mirror=memory)
    assert not (tmp_path / "other").exists()
    other = config.model_copy(update={"name": "other"})
    start(other, tmp_path / "other", executor=analytic_executor)
    with pytest.raises(StateError, match="is another one; give the address of this run"):
        resume(tmp_path / "other", executor=analytic_executor, mirror=memory)


def test_a_folder_of_other_things_is_not_restored_into(memory: str, config: RunConfig, tmp_path: Path) -> None:
    begun(config, tmp_path / "run", memory)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StateError, match="holds other files"):
        resume(tmp_path / "mine", executor=analytic_executor, mirror=memory)


def damage(store: MirrorStore, kind: str) -> None:
    parts = store.segments()
    scores = store.names("scores")
    if kind == "changed line":
        for name, data in store.get_all([part.name for part in parts]):
            store.put({name: data.replace(b'"candidate":1,', b'"candidate":2,')})
    elif kind == "lost part":
        store.delete(parts[1].name)
    elif kind == "short part":
        store.put({parts[1].name: (store.get(parts[1].name) or b"").split(b"\n", 1)[1]})
    elif kind == "part twice":
        last = parts[-1]
        store.put({f"journal/{last.last:012d}-{last.last + 1:012d}.jsonl": b"{}\n{}\n"})
    elif kind == "changed scores":
        store.put({scores[0]: b"0"})
    elif kind == "lost scores":
        store.delete(scores[0])
    else:
        store.delete("config.yaml")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("changed line", "the journal there is damaged"),
        ("lost part", r"lines \d+ to \d+ of the journal are missing there"),
        ("short part", "was changed there"),
        ("part twice", "stands there twice"),
        ("changed scores", "scores/.* was changed there"),
        ("lost scores", "scores/.* is missing there"),
        ("lost config", "config.yaml is missing there"),
    ],
)
def test_a_damaged_mirror_is_refused_and_gives_no_run(
    kind: str, says: str, memory: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "SEGMENT_BYTES", 2000)
    begun(config, tmp_path / "run", memory)
    damage(MirrorStore(memory), kind)
    with pytest.raises(StateError, match=says):
        resume(tmp_path / "copy", executor=analytic_executor, mirror=memory)
    assert not (tmp_path / "copy" / "config.yaml").exists()
    assert not (tmp_path / "copy" / JOURNAL).exists()
    assert MirrorStore(memory).get(HOLDER) is None


def test_a_living_holder_is_refused_and_a_silent_one_followed(memory: str) -> None:
    first = MirrorLease(MirrorStore(memory), QUICK)
    first.acquire()
    second = MirrorLease(MirrorStore(memory), QUICK)
    alive = threading.Event()

    def live() -> None:
        while not alive.wait(0.01):
            first.beat()

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(RunHeldError, match=r"held by process \d+ on .*; pause or stop it there"):
        second.acquire()
    alive.set()
    thread.join()
    second.acquire()
    time.sleep(QUICK.beat_s)
    with pytest.raises(RunHeldError, match="has taken it over"):
        first.beat()
    first.release()  # it is no longer the first one's to give
    assert MirrorStore(memory).get(HOLDER) is not None
    second.release()
    assert MirrorStore(memory).get(HOLDER) is None


def test_a_folder_is_told_with_the_next_sign_of_life_and_then_waited_for_by_nobody(memory: str, tmp_path: Path) -> None:
    store = MirrorStore(memory)
    first = MirrorLease(store, Pace(beat_s=1000.0))
    first.acquire()
    first.name(tmp_path)
    first.beat()
    MirrorLease(store, Pace(), sleep=lambda _: pytest.fail("it waited")).acquire(tmp_path)


def test_a_note_of_long_ago_is_waited_for_by_nobody(memory: str) -> None:
    store = MirrorStore(memory)
    store.put({HOLDER: json.dumps({"id": "x", "pid": 1, "host": "h", "time": "2020-01-01T00:00:00Z"}).encode()})
    MirrorLease(store, Pace(), sleep=lambda _: pytest.fail("it waited")).acquire()


@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b'{"time": 5}'])
def test_a_note_that_is_none_is_watched_like_any(note: bytes, memory: str) -> None:
    store = MirrorStore(memory)
    store.put({HOLDER: note})
    MirrorLease(store, QUICK).acquire()


def test_a_run_whose_mirror_was_taken_goes_on_and_leaves_it_alone(
    memory: str, config: RunConfig, undisturbed: Story, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[int] = []

    def act(count: int) -> None:
        if count == 5:
            note = {"id": "other", "pid": 7, "host": "elsewhere", "time": "2026-01-01T00:00:00Z"}
            MirrorStore(memory).put({HOLDER: json.dumps(note).encode()})
            eventually(lambda: "process 7 on elsewhere has taken it over" in caplog.text)
            taken.append(num_mirrored(memory))

    start(config, tmp_path / "run", executor=before_each(act), mirror=memory)
    assert story(tmp_path / "run") == undisturbed
    assert [num_mirrored(memory)] == taken
    assert b"elsewhere" in (MirrorStore(memory).get(HOLDER) or b"")


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("runs/copy", ConfigError, "not an address"),
        ("nosuch://a/b", ConfigError, "Protocol not known: nosuch"),
        ("s3://missing-bucket/a", ConfigError, "bucket does not exist.*check the address and the credentials"),
        ("file:///proc/evomerge/a", ConfigError, "writing failed"),
        (
            "ftp://user:secret@127.0.0.1:1/a",
            ConfigError,
            r"--mirror ftp://127\.0\.0\.1:1/a: the address cannot be used",
        ),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_in_a_sentence_before_anything_is_written(
    url: str, error: type[EvomergeError], says: str, server: S3Server, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says) as caught:
        start(config, tmp_path / "run", executor=analytic_executor, mirror=url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_missing_credentials_are_named(
    server: S3Server, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigError, match=r"Unable to locate credentials.*check the address and the credentials"):
        start(config, tmp_path / "run", executor=analytic_executor, mirror=f"s3://{BUCKET}/{uuid.uuid4().hex}")


def test_a_protocol_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"Install s3fs.*; install evomerge\[mirror\]"):
        MirrorStore("s3://bucket/a")


def test_neither_folder_nor_mirror_with_a_run_is_one_sentence(memory: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no run is there, and none at the mirror"):
        resume(tmp_path / "run", mirror=memory)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("torn", [b'{"seq":99,"event":"as', b'{"seq":99,"event":"as\n'])
def test_a_torn_end_of_the_folders_journal_is_no_difference(
    torn: bytes, memory: str, config: RunConfig, undisturbed: Story, tmp_path: Path
) -> None:
    begun(config, tmp_path / "run", memory)
    with (tmp_path / "run" / JOURNAL).open("ab") as file:
        file.write(torn)
    resume(tmp_path / "run", executor=analytic_executor, mirror=memory)
    assert story(tmp_path / "run") == undisturbed
    assert num_mirrored(memory) == len(lines(tmp_path / "run"))
