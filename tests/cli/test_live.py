"""The live view: what it shows, how often, and that looking changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.cli.live import PLAIN_EVERY_S, LiveView, line, panel
from evomerge.run.lease import Lease
from evomerge.run.observer import DRAINING
from evomerge.run.session import start
from evomerge.run.view import load_run
from tests.cli.conftest import Cli, snapshot, steady_executor
from tests.run.small import OBJECTIVES

FIGURES = {"generation": 2, "step_size": 0.1234, "workers": 4, "workers_ready": 3}


@pytest.fixture
def running(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A run that a coordinator holds, after about two thirds of its events."""
    path = shutil.copytree(finished, tmp_path / "running")
    lines = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (path / "journal.jsonl").write_bytes(b"".join(lines[: 2 * len(lines) // 3]))
    with Lease(path):
        yield path


def rendered(path: Path, figures: dict[str, Any]) -> str:
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(panel(load_run(path), figures))
    return console.export_text()


def test_the_panel_of_a_running_run_shows_everything_that_a_person_watches(running: Path) -> None:
    text = rendered(running, FIGURES)
    for word in (
        *OBJECTIVES,
        "best",
        "front",
        "hypervolume",
        "workers ready 3",
        "generation 2",
        "/min",
        "ETA",
        "of 10",
    ):
        assert word in text
    for reference in ("parent:letters", "uniform"):
        assert reference in text
    assert "running" in text


def test_the_panel_of_a_finished_run_promises_no_end(finished: Path) -> None:
    text = rendered(finished, {})
    assert "finished" in text
    assert "ETA" not in text


def test_the_panel_of_a_run_with_no_score_yet_can_be_drawn(running: Path) -> None:
    lines = (running / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for count in (0, 1, 2):
        (running / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        assert "0 of 10 evaluations" in rendered(running, FIGURES)
        assert "0/10 evaluations" in line(load_run(running), {})


def test_the_panel_says_that_a_run_drains(running: Path) -> None:
    assert "interrupted: finishing what is being scored" in rendered(running, {**FIGURES, DRAINING: "interrupted"})


def test_a_line_says_where_a_run_stands(running: Path) -> None:
    text = line(load_run(running), FIGURES)
    for word in ("running", "/10 evaluations", "/min", "front", "hypervolume", *OBJECTIVES, "generation 2", "left"):
        assert word in text
    assert "\n" not in text


def test_where_nobody_looks_there_are_plain_lines_now_and_then(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    with LiveView(running, clock=lambda: now) as view:
        for tick in range(41):
            now = tick * PLAIN_EVERY_S / 10
            view({"generation": tick})
    lines = capsys.readouterr().err.splitlines()
    assert [f"generation {tick}" in text for tick, text in zip((0, 10, 20, 30, 40), lines, strict=False)] == [True] * 5
    assert len(lines) == 6
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_the_panel_is_drawn(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    with LiveView(path, plain=False) as view:
        start(config, path, executor=steady_executor, observer=view)
    assert "hypervolume" in capsys.readouterr().err


def test_the_start_of_a_drain_is_said_at_once(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    view = LiveView(tmp_path / "not there yet", plain=True)
    view({DRAINING: "interrupted"})
    assert "interrupted: finishing what is being scored; Ctrl-C again stops at once" in capfd.readouterr().err


class TestWatch:
    """`evomerge watch`."""

    def test_ends_when_the_run_does(
        self, cli: Cli, running: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[float] = []

        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                shutil.copy(finished / "journal.jsonl", running / "journal.jsonl")

        monkeypatch.setattr("evomerge.cli.read.time.sleep", sleep)
        said = cli("watch", running, "--every", "0.5")
        assert said.code == 0
        assert looks == [0.5, 0.5, 0.5]
        assert "running" in said.err.splitlines()[0]
        assert "finished" in said.err.splitlines()[-1]

    def test_of_a_run_that_was_interrupted_neither_waits_nor_resumes(self, cli: Cli, run_copy: Path) -> None:
        journal = run_copy / "journal.jsonl"
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-3]))
        before = snapshot(run_copy)
        said = cli("watch", run_copy)
        assert (said.code, said.out) == (0, "")
        assert "interrupted" in said.err
        assert snapshot(run_copy) == before

    def test_changes_no_byte_of_a_running_run(self, cli: Cli, running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("evomerge.cli.read.time.sleep", stop)
        before = snapshot(running)
        assert cli("watch", running).code == 130
        assert snapshot(running) == before
