from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evomerge.errors import JournalError, StateError
from evomerge.run.events import Budget, Exported, Paused, Resumed, Stopped
from evomerge.run.lease import Lease
from evomerge.run.view import Run, load_run

if TYPE_CHECKING:
    from tests.run.conftest import Recorder


@pytest.fixture
def finished(recorder: Recorder) -> Run:
    """Two generations with one infeasible and one failed candidate, and a reference."""
    recorder.states = {1: "infeasible", 6: "failed"}
    recorder.start()
    recorder.evaluate("uniform", recorder.reference("uniform", {"method": "linear", "weight": 1.0}))
    recorder.run(generations=2)
    recorder.finish()
    return load_run(recorder.folder.path)


def test_status_has_the_keys_that_the_interface_pins(finished: Run) -> None:
    status = finished.status()
    assert list(status) == [
        "run", "state", "evaluations", "best", "hypervolume", "front_size", "elapsed_s", "budget", "spent",
        "busy_share", "workers",
    ]  # fmt: skip
    assert status["evaluations"] == {"done": 8, "failed": 1, "infeasible": 1, "running": 0}
    assert (status["run"], status["state"], status["elapsed_s"]) == ("run", "finished", 100.0)
    assert {key: value for key, value in status["budget"].items() if value is not None} == {"evaluations": 8}
    assert status["spent"] == {"evaluations": 8, "hours": round(100 / 3600, 6), "gpu_hours": 0.0, "cost": None}
    json.dumps(status, allow_nan=False)


def test_best_values_hypervolume_and_front_are_those_of_the_feasible_candidates(finished: Run) -> None:
    status, front = finished.status(), finished.pareto()
    feasible = [
        event.objectives
        for owner, event in finished.state.of_split("search").items()
        if isinstance(owner, int) and event.state == "feasible"
    ]
    assert status["best"] == {
        name: max(values[name] for values in feasible) for name in ("sums.exact_match", "-ja.loss")
    }
    assert status["front_size"] == len(front) > 0
    assert status["hypervolume"] > 0
    for row in front:
        means = [value["mean"] for value in row["objectives"].values()]
        assert not any(
            all(b >= a for a, b in zip(means, other.values(), strict=True)) and list(other.values()) != means
            for other in feasible
        )


def test_pareto_has_the_keys_that_the_interface_pins(finished: Run) -> None:
    row = finished.pareto()[0]
    assert list(row) == ["id", "recipe_id", "objectives", "split", "feasible"]
    assert set(row["objectives"]["sums.exact_match"]) == {"mean", "stderr", "samples"}
    assert row["objectives"]["sums.exact_match"]["samples"] == 8
    assert (row["split"], row["feasible"]) == ("search", True)
    assert finished.pareto("test") == []


def test_show_gives_the_recipe_with_its_identity_and_every_evaluation(finished: Run, recorder: Recorder) -> None:
    shown = finished.show(0)
    assert {"id", "recipe", "recipe_id", "genome", "evaluations", "parents"} <= set(shown)
    assert shown["id"] == 0
    assert shown["recipe_id"] == recorder.identify(finished.recipe(0))
    assert shown["recipe"] == finished.recipe(0).to_mapping()
    assert shown["genome"] == list(finished.state.asked[0].genome)
    [evaluation] = shown["evaluations"]
    assert (evaluation["split"], evaluation["state"], evaluation["seconds"]) == (
        "search",
        "feasible",
        {"score": 0.5},
    )
    assert evaluation["objectives"]["-ja.loss"]["samples"] == 5
    json.dumps(shown, allow_nan=False)


def test_a_reference_is_shown_like_a_candidate_without_a_genome(finished: Run) -> None:
    shown = finished.show("uniform")
    assert (shown["id"], shown["genome"], shown["parents"]) == ("uniform", None, [])
    assert shown["recipe"]["blend"]["method"] == "linear"
    [reference] = finished.references()
    assert reference["name"] == "uniform"
    assert list(reference["objectives"]) == ["search"]


def test_a_candidate_is_meant_by_number_name_best_or_knee(finished: Run) -> None:
    assert finished.resolve("3") == 3
    assert finished.resolve("uniform") == "uniform"
    assert finished.resolve("best") == finished.best()
    assert finished.resolve("knee") == finished.knee()
    for word in ("99", "-1", "nobody", "³"):
        with pytest.raises(StateError, match=r"no candidate .*below 8 or a reference"):
            finished.resolve(word)


def test_per_sample_scores_are_read_and_checked(finished: Run) -> None:
    scores = finished.scores(0)
    assert scores is not None
    mean = finished.state.evaluations[0, "search"].objectives["sums.exact_match"]
    assert scores.samples["sums.exact_match"].mean() == mean
    assert finished.scores(1) is None
    assert finished.scores(0, "test") is None


def test_best_is_chosen_on_the_validation_split_once_the_whole_front_was_scored_there(
    recorder: Recorder,
) -> None:
    recorder.start()
    recorder.run(generations=2)
    run = load_run(recorder.folder.path)
    archive = run.archive()
    assert run.selection_split == "search"
    assert run.best() == archive.best()
    front = archive.front()
    for place, number in enumerate(front):
        recorder.evaluate(number, run.recipe(number), "validation")
        run.refresh()
        assert run.selection_split == ("validation" if place == len(front) - 1 else "search")
    values = {number: run.value(number, "validation") for number in front}
    assert run.best() == max(front, key=lambda number: values[number] or 0.0)
    assert run.knee() in run.archive("validation").front()
    assert [row["id"] for row in run.pareto()] == list(front)
    assert {row["split"] for row in run.pareto("validation")} == {"validation"}


def test_history_has_one_row_an_evaluation_and_never_falls(finished: Run) -> None:
    history = finished.history()
    assert history.candidate.tolist() == [owner for owner in finished.state.of_split("search") if owner != "uniform"]
    assert history.best_per_objective.shape == (8, 2)
    for column in (history.elapsed_s, history.best, history.hypervolume, *history.best_per_objective.T):
        known = column[~np.isnan(column)]
        assert column.shape == (8,)
        assert (np.diff(known) >= 0).all()
    assert history.hypervolume[-1] == pytest.approx(finished.status()["hypervolume"])


def test_a_run_that_is_held_runs_and_one_that_is_not_was_interrupted(recorder: Recorder) -> None:
    recorder.start()
    recorder.ask()
    now = 1_700_000_000.0
    with Lease(recorder.folder.path):
        run = Run(recorder.folder.path, clock=lambda: now + 50)
        assert run.status()["state"] == "running"
        assert run.status()["evaluations"]["running"] == 1
        assert run.status()["elapsed_s"] == 50.0
    assert run.status()["state"] == "interrupted"
    assert run.status()["evaluations"]["running"] == 0
    assert run.status()["elapsed_s"] == 1.0


def test_the_last_lifecycle_event_says_where_a_run_that_nobody_holds_stands(recorder: Recorder) -> None:
    recorder.start()
    run = load_run(recorder.folder.path)
    for event, state in (
        (Paused(reason="asked", elapsed_s=1), "paused"),
        (Resumed(pid=1, host="h", elapsed_s=1), "interrupted"),
        (Stopped(reason="asked", elapsed_s=2), "stopped"),
        (Exported(candidate="uniform", out="model"), "stopped"),
    ):
        recorder.journal.append(event)
        run.refresh()
        assert run.condition() == state
    with Lease(recorder.folder.path):
        assert run.condition() == "stopped"  # an export holds the run for a while, nothing is searched


def test_a_changed_budget_is_the_budget(recorder: Recorder) -> None:
    recorder.start()
    recorder.journal.append(Budget(changes={"evaluations": 200, "hours": 1.5}))
    assert load_run(recorder.folder.path).status()["budget"] == {
        "evaluations": 200, "hours": 1.5, "gpu_hours": None, "cost": None, "cost_per_gpu_hour": None, "target": None,
        "plateau": None,
    }  # fmt: skip


def test_a_run_with_an_empty_journal_has_a_status(recorder: Recorder) -> None:
    run = load_run(recorder.folder.path)
    status = run.status()
    assert (status["state"], status["best"], status["front_size"]) == ("interrupted", {}, 0)
    assert run.pareto() == []
    assert run.history().best.shape == (0,)
    assert run.best() is None
    with pytest.raises(StateError, match="no feasible candidate yet"):
        run.resolve("best")
    with pytest.raises(StateError, match="nothing was journaled yet"):
        run.archive()


def test_reading_a_run_writes_nothing(finished: Run, recorder: Recorder) -> None:
    path = recorder.folder.path
    with recorder.folder.journal.open("ab") as file:
        file.write(b'{"torn')
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    run = load_run(path)
    run.status()
    run.pareto()
    run.show(0)
    run.references()
    run.history()
    run.refresh()
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    assert after == before
    assert finished.status() == run.status()


def test_a_run_with_a_broken_middle_line_cannot_be_viewed(finished: Run) -> None:
    path = finished.folder.journal
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"candidate", b"candibate")
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"journal\.jsonl:5: broken line"):
        load_run(path.parent)


def test_a_folder_that_is_no_run_cannot_be_viewed(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not a run folder"):
        load_run(tmp_path)
