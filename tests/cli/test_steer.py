"""Steering from another shell: the commands, what they print, and what they refuse."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge.run.commands import FOLDER
from evomerge.run.events import Paused
from evomerge.run.journal import read_journal
from evomerge.run.lease import Lease
from evomerge.run.session import resume
from tests.cli.conftest import Cli, steady_executor, write_search
from tests.cli.test_interrupt import PATIENCE_S, forked_run, num_scored, wait_for
from tests.run.test_resume import story

STEERING = (
    ("pause",), ("stop",), ("budget", "hours=1"), ("workers", "2"), ("hold", "digits", "--weight", "0.5"),
    ("ban", "digits"), ("free", "digits"),
)  # fmt: skip


@contextmanager
def running(problem: Path, out: Path, **changes: Any) -> Iterator[Any]:
    """A real run in another process, at work until the end of the block."""
    write_search(problem / f"{out.name}.yaml", {"budget.evaluations": 400, **changes})
    process = forked_run(problem, out, slow=False, name=f"{out.name}.yaml")
    try:
        wait_for(lambda: num_scored(out) >= 6 or not process.is_alive(), "the sixth score")
        yield process
    finally:
        process.kill()
        process.join(PATIENCE_S)


def test_pause_from_another_shell(cli: Cli, problem: Path, tmp_path: Path) -> None:
    out = tmp_path / "paused"
    with running(problem, out) as process:
        refused = cli("resume", out)
        refused.is_refusal("held by", "pause or stop it there", code=3)
        said = cli("pause", out)
        process.join(PATIENCE_S)
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith(f"{out}: paused after ")
    assert said.out.endswith(f"; continue it with: evomerge resume {out}\n")
    assert process.exitcode == 130
    words = out.with_suffix(".txt").read_text()
    assert f"paused; everything scored is journaled. Continue with: evomerge resume {out}" in words
    assert cli("status", out, "--json").json["state"] == "paused"
    assert cli("pause", out, "--json").json == {"run": "paused", "state": "paused"}
    assert cli("verify", out).code == 0
    assert cli("stop", out, "--json").json["state"] == "stopped"
    assert cli("stop", out).out == f"{out}: is stopped already\n"
    assert cli("status", out, "--json").json["state"] == "stopped"


def test_everything_else_from_another_shell_and_a_stop_at_the_end(cli: Cli, problem: Path, tmp_path: Path) -> None:
    out = tmp_path / "steered"
    with running(problem, out) as process:
        front = cli("pareto", out, "--json").json  # results are there while the run goes on
        assert front
        best = tmp_path / "best.yaml"
        assert cli("export", out, best, "--format", "recipe", "--candidate", str(front[0]["id"])).code == 0
        budget = cli("budget", out, "evaluations=399", "budget.hours=2", "--json").json
        assert (budget["budget"]["evaluations"], budget["budget"]["hours"]) == (399, 2.0)
        assert budget["spent"]["evaluations"] > 0
        assert cli("status", out, "--json").json["budget"]["evaluations"] == 399
        injected = cli("inject", out, best)
        assert f"has the recipe of {front[0]['id']}, which has been scored" in injected.out
        assert cli("ban", out, "digits").out == f"{out}: digits is banned, in every candidate from now on\n"
        assert cli("hold", out, "digits", "--weight", "0.5", "--json").json["held"] == {"digits": 0.5}
        assert "digits is free again" in cli("free", out, "digits").out
        cli("free", out, "digits").is_refusal("is not held")
        cli("ban", out, "digit").is_refusal("did you mean 'digits'?")
        cli("workers", out, 3).is_refusal("1 worker")
        assert cli("workers", out, 1).code == 0
        left = cli("budget", out, "hours=3", "--no-wait", "--json").json
        assert left["state"] == "sent"
        said = cli("stop", out, "--json")
        process.join(PATIENCE_S)
    assert said.json["state"] == "stopped"
    assert process.exitcode == 0
    assert "stopped: stop command" in out.with_suffix(".txt").read_text()
    assert cli("verify", out).code == 0
    (answer,) = (out / FOLDER).iterdir()
    assert json.loads(answer.read_text())["done"]


def test_sigusr1_drains_however_often_it_comes(problem: Path, tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "run"
    process = forked_run(problem, out, slow=False)
    try:
        wait_for(lambda: num_scored(out) >= 6, "the sixth score")
        for _ in range(3):
            os.kill(process.pid, signal.SIGUSR1)
        process.join(PATIENCE_S)
    finally:
        process.kill()
    assert process.exitcode == 130
    last = read_journal(out / "journal.jsonl")[-1]
    assert isinstance(last, Paused)
    assert last.reason == "asked to leave by SIGUSR1"
    resume(out, executor=steady_executor)
    assert story(out) == story(finished)


class TestRefusals:
    """One sentence each, and nothing lost."""

    @pytest.mark.parametrize("words", STEERING, ids=lambda words: words[0])
    def test_where_there_is_no_run(self, cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
        cli(words[0], tmp_path / "none", *words[1:]).is_refusal("no such folder")
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("words", STEERING, ids=lambda words: words[0])
    def test_where_no_coordinator_is_at_work(self, cli: Cli, run_copy: Path, words: tuple[str, ...]) -> None:
        before = sorted(run_copy.rglob("*"))
        cli(words[0], run_copy, *words[1:]).is_refusal("no coordinator works on this run; it is finished")
        assert sorted(run_copy.rglob("*")) == before

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("evaluation=5", "did you mean 'evaluations'?"),
            ("evaluations", "expected KEY=VALUE"),
            ("hours=[1]", "expected a number"),
        ],
    )
    def test_a_limit_that_is_none(self, cli: Cli, run_copy: Path, change: str, words: str) -> None:
        cli("budget", run_copy, change).is_refusal(words)

    def test_a_weight_that_is_none(self, cli: Cli, run_copy: Path) -> None:
        cli("hold", run_copy, "digits", "--weight", "nan").is_refusal("expected a finite number")

    def test_a_recipe_that_cannot_be_read(self, cli: Cli, run_copy: Path, tmp_path: Path) -> None:
        cli("inject", run_copy, tmp_path / "none.yaml").is_refusal("none.yaml")
        (tmp_path / "bad.yaml").write_text("recipe: 1\nsources: {a: {model: b}}\nblend: {method: tis}\n")
        cli("inject", run_copy, tmp_path / "bad.yaml").is_refusal("tis")

    def test_a_coordinator_that_leaves_without_an_answer(self, cli: Cli, run_copy: Path) -> None:
        lease = Lease(run_copy).acquire()

        def leave() -> None:
            wait_for(lambda: (run_copy / FOLDER).is_dir() and any((run_copy / FOLDER).iterdir()), "the command")
            lease.release()

        thread = threading.Thread(target=leave)
        thread.start()
        said = cli("pause", run_copy)
        thread.join()
        said.is_refusal("the coordinator left before it answered; the run is finished", "taken back")
        assert list((run_copy / FOLDER).iterdir()) == []
