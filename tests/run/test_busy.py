"""Busy shares of workers agree with durations that are known."""

from __future__ import annotations

import pytest

from evomerge.run.busy import BusyWorkers
from evomerge.run.events import Evaluated
from evomerge.run.view import load_run
from tests.run.conftest import Recorder


def outcome(worker: str | None, seconds: float, **more: object) -> Evaluated:
    return Evaluated.model_validate(
        {
            "candidate": 0, "recipe_id": "r", "split": "search", "state": "failed", "worker": worker,
            "seconds": {"score": seconds / 2, "other": seconds / 2}, **more,
        }
    )  # fmt: skip


def test_a_workers_time_runs_from_its_first_evaluation_to_its_last() -> None:
    busy = BusyWorkers()
    busy.add(outcome("a", 10.0), 40.0)  # it began at 30
    busy.add(outcome("b", 5.0), 45.0)
    busy.add(outcome("a", 4.0), 50.0)
    assert busy.table() == {
        "a": {"evaluations": 2, "seconds": 14.0, "busy_share": 0.7},
        "b": {"evaluations": 1, "seconds": 5.0, "busy_share": 1.0},
    }
    assert busy.share() == pytest.approx(19 / 25)


def test_reused_scores_and_other_splits_are_nobodys_time() -> None:
    busy = BusyWorkers()
    busy.add(outcome(None, 0.0, reused_from=3), 10.0)
    busy.add(outcome("a", 3.0, split="validation"), 20.0)
    assert (busy.table(), busy.share()) == ({}, None)


def test_status_has_every_workers_share(recorder: Recorder) -> None:
    recorder.start()
    recorder.run(generations=2)  # an event a second, half a second an evaluation
    status = load_run(recorder.folder.path).status()
    assert status["workers"]["inline"]["evaluations"] == 8
    assert status["workers"]["inline"]["seconds"] == 4.0
    assert status["busy_share"] == status["workers"]["inline"]["busy_share"]
    assert 0.3 < status["busy_share"] < 0.5
