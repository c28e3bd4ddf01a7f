"""What every command prints and writes when nothing is wrong; the keys of its JSON are an interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import RunHeldError
from evomerge.operators import names
from evomerge.recipe import Recipe
from evomerge.run.events import Asked, Evaluated, Exported
from evomerge.run.folder import RunFolder
from evomerge.run.journal import read_journal
from evomerge.run.lease import Lease
from evomerge.run.load import load_config
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from tests.cli.conftest import Cli, snapshot, steady_executor
from tests.run.small import DOCUMENTS, OBJECTIVES
from tests.run.test_resume import story

NUMBERS = {"mean", "stderr", "samples"}


def test_run_starts_a_search_and_says_how_to_go_on(
    cli: Cli, problem: Path, finished: Path, tmp_path: Path, analytic: None
) -> None:
    out = tmp_path / "runs" / "first"
    said = cli("run", problem / "search.yaml", "--out", out)
    assert said.code == 0
    assert said.out == ""
    assert f"evomerge export {out} OUT" in said.err
    assert {path.name for path in out.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "journal.jsonl",
        "scores",
        "artifacts",
    }
    assert story(out) == story(finished)


def test_run_takes_overrides_and_continues_where_it_is_told_to(
    cli: Cli, problem: Path, finished: Path, tmp_path: Path, analytic: None
) -> None:
    out, config = tmp_path / "run", problem / "search.yaml"
    assert cli("run", config, "--out", out, "--resume", "--set", "budget.evaluations=4").code == 0
    assert cli("status", out, "--json").json["evaluations"]["done"] == 4
    assert cli("run", config, "--out", out, "--resume").code == 0
    assert cli("status", out, "--json").json["evaluations"]["done"] == 10
    asked = [line for line in story(out) if line[0] == "asked"]
    assert asked == [line for line in story(finished) if line[0] == "asked"]


def test_resume_continues_from_the_journal_alone_from_any_folder(
    cli: Cli, problem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analytic: None
) -> None:
    out = tmp_path / "run"
    assert cli("run", problem / "search.yaml", "--out", out, "--set", "budget.evaluations=4").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli("resume", "../run", "--set", "budget.evaluations=12").code == 0
    facts = cli("status", "../run", "--json").json
    assert (facts["evaluations"]["done"], facts["budget"]["evaluations"]) == (12, 12)


def test_a_folder_that_is_called_as_the_catalogues_suite_is_not_taken_for_it(
    cli: Cli, problem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fitness").mkdir()
    (tmp_path / "fitness" / "zoo.yaml").write_text("suite: 1\ntasks: []\n")
    monkeypatch.chdir(tmp_path)
    suite = ("--set", "fitness.suite=fitness/zoo.yaml", "--set", "fitness.objectives=[letters.exact_match]")
    assert "letters" in cli("check", problem / "search.yaml", *suite, "--json").json["tasks"]


def test_status_json(cli: Cli, finished: Path) -> None:
    facts = cli("status", finished, "--json").json
    assert list(facts) == [
        "run", "state", "evaluations", "best", "hypervolume", "front_size", "elapsed_s", "budget", "spent",
        "busy_share", "workers",
    ]  # fmt: skip
    assert set(facts["evaluations"]) == {"done", "failed", "infeasible", "running"}
    assert set(facts["best"]) == set(OBJECTIVES)
    limits = {"evaluations", "hours", "gpu_hours", "cost", "cost_per_gpu_hour", "target", "plateau"}
    assert set(facts["budget"]) == limits
    assert (facts["run"], facts["state"], facts["evaluations"]["done"]) == ("run", "finished", 10)
    assert facts["front_size"] == len(cli("pareto", finished, "--json").json)
    assert facts["hypervolume"] > 0
    assert facts["elapsed_s"] >= 0


def test_status_says_whether_a_run_runs_was_paused_or_ended(
    cli: Cli, config: Any, finished: Path, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.run.coordinator.LOOK_S", 0.0)
    assert cli("status", finished, "--json").json["state"] == "finished"
    seen: list[dict[str, Any]] = []
    paused = tmp_path / "paused"

    class _Drains:
        """Looks at the run while it runs, then asks it to drain."""

        def __call__(self, figures: object) -> None:
            seen.append(cli("status", paused, "--json").json)
            if len(seen) == 12:
                os.kill(os.getpid(), signal.SIGTERM)

    assert start(config, paused, executor=steady_executor, observer=_Drains()).ending == "paused"
    assert {facts["state"] for facts in seen} == {"running"}
    assert max(facts["evaluations"]["running"] for facts in seen) <= 1
    assert cli("status", paused, "--json").json["state"] == "paused"
    journal = run_copy / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    assert cli("status", run_copy, "--json").json["state"] == "interrupted"
    resume(paused, executor=steady_executor)
    assert story(paused) == story(finished)


def test_pareto_json(cli: Cli, finished: Path) -> None:
    for split in ("search", "validation"):
        front = cli("pareto", finished, "--split", split, "--json").json
        assert front
        for row in front:
            assert list(row) == ["id", "recipe_id", "objectives", "split", "feasible"]
            assert (row["split"], row["feasible"]) == (split, True)
            assert set(row["objectives"]) == set(OBJECTIVES)
            for value in row["objectives"].values():
                assert set(value) == NUMBERS
                assert value["samples"] == DOCUMENTS
    means = [
        tuple(value["mean"] for value in row["objectives"].values()) for row in cli("pareto", finished, "--json").json
    ]
    beaten = [
        (one, two)
        for one in means
        for two in means
        if one != two and all(a <= b for a, b in zip(one, two, strict=True))
    ]
    assert not beaten
    assert cli("pareto", finished, "--split", "test", "--json").json == []


@pytest.mark.parametrize("candidate", ["0", "best", "knee", "uniform", "parent:base"])
def test_show_json(cli: Cli, finished: Path, candidate: str) -> None:
    facts = cli("show", finished, candidate, "--json").json
    assert list(facts) == ["id", "recipe", "recipe_id", "genome", "evaluations", "parents"]
    recipe = Recipe.from_mapping(facts["recipe"])
    run = load_run(finished)
    assert facts["id"] == run.resolve(candidate)
    assert recipe == run.recipe(facts["id"])
    assert run.recipe_id(facts["id"]) == facts["recipe_id"]
    for evaluation in facts["evaluations"]:
        assert {"split", "state", "objectives", "scores", "seconds"} <= set(evaluation)
        assert all(set(value) == NUMBERS for value in evaluation["objectives"].values())
    if candidate in ("best", "knee"):
        assert [evaluation["split"] for evaluation in facts["evaluations"]] == ["search", "validation"]
    assert (facts["genome"] is None) == (not isinstance(facts["id"], int))


def test_best_is_the_feasible_candidate_with_the_highest_mean_on_the_validation_split(cli: Cli, finished: Path) -> None:
    front = cli("pareto", finished, "--json").json
    facts = cli("show", finished, "best", "--json").json
    events = read_journal(finished / "journal.jsonl")
    validated = {
        event.candidate: sum(event.objectives.values())
        for event in events
        if isinstance(event, Evaluated)
        and event.split == "validation"
        and event.state == "feasible"
        and isinstance(event.candidate, int)
    }
    assert {row["id"] for row in front} & set(validated)
    assert validated[facts["id"]] == max(validated.values())


def test_verify_json(cli: Cli, finished: Path) -> None:
    facts = cli("verify", finished, "--json").json
    assert (facts["candidates"], facts["open"], facts["torn_bytes"]) == (10, 0, 0)
    assert facts["events"] == len(read_journal(finished / "journal.jsonl"))


def test_check_json(cli: Cli, problem: Path) -> None:
    facts = cli("check", problem / "search.yaml", "--json").json
    known = {"kind", "name", "sources", "problems", "notes", "disk", "memory", "time"}
    assert set(facts) == known | {"dimensions", "objectives", "constraints", "tasks", "engine"}
    assert (facts["kind"], facts["problems"]) == ("search", [])
    assert facts["objectives"] == list(OBJECTIVES)
    assert facts["tasks"] == ["letters", "digits"]
    assert {row["layers"] for row in facts["sources"].values()} == {2}
    assert facts["dimensions"] >= 2


def test_check_says_the_engine_and_its_memory(cli: Cli, problem: Path) -> None:
    facts = cli("check", problem / "search.yaml", "--json").json
    parameters = sum(row["parameters"] for row in facts["sources"].values())
    assert facts["engine"]["kind"] == "transformers"
    assert facts["engine"]["host_bytes"] > 4 * parameters
    text = cli("check", problem / "search.yaml").out
    assert "engine: transformers (the search file says so)" in text
    assert "sources are kept in main memory, as float32" in text
    away = ("--set", "executor.kind=ray", "--set", "executor.address=127.0.0.1:1", "--set", "engine.kind=vllm")
    engine = cli("check", problem / "search.yaml", *away, "--json").json["engine"]
    assert set(engine) == {"kind", "reason"}


def test_an_engine_that_is_decided_on_is_written_down_and_resumed_with(
    problem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` becomes what it was decided to be; the same file, with `auto` in it, still belongs to the run."""
    monkeypatch.setattr("evomerge.fitness.engines.installed", lambda: None)
    config = load_config(problem / "search.yaml", ["engine.kind=auto"])
    start(config, tmp_path / "run", executor=steady_executor)
    folder = RunFolder.open(tmp_path / "run")
    assert folder.config().engine.kind == "transformers"
    engine = json.loads(folder.environment_path.read_text())["engine"]
    assert engine["kind"] == "transformers"
    assert engine["reason"].startswith("vLLM is not installed; install it with")
    assert resume(tmp_path / "run", config=config, executor=steady_executor).ending == "finished"


def test_operators_json(cli: Cli) -> None:
    listed = cli("operators", "--json").json
    assert [operator["name"] for operator in listed] == list(names())
    assert all(operator["paper"] and operator["summary"] and operator["parameters"] for operator in listed)
    for operator in listed:
        assert operator["scope"] in ("element", "row", "tensor", "model")
        assert operator.keys() >= {"family", "base", "needs", "adapters", "min_sources", "max_sources"}
        for parameter in operator["parameters"]:
            assert len(parameter["range"]) >= 2
            assert parameter.keys() >= {"name", "kind", "range", "scale", "default", "search", "per_source"}


def test_catalog_json(cli: Cli) -> None:
    listed = cli("catalog", "--json").json
    assert set(listed) == {"search_spaces", "fitness", "cluster", "models"}
    assert "search_spaces/ties-per-block.yaml" in listed["search_spaces"]
    assert "zoo:base" in listed["models"]


def test_every_reading_command_also_prints_for_people_and_changes_no_byte(
    cli: Cli, problem: Path, finished: Path, tmp_path: Path
) -> None:
    before = snapshot(finished)
    for command, words in (
        (["status", finished], ["finished", "10 done", "hypervolume"]),
        (["pareto", finished], ["Pareto front", *OBJECTIVES, "±"]),
        (["show", finished, "best"], ["Candidate", "task_arithmetic", "±"]),
        (["show", finished, "uniform"], ["reference", "linear"]),
        (["verify", finished], ["10 candidates asked again and equal"]),
        (["watch", finished, "--plain"], []),
        (["report", finished, tmp_path / "page.html"], ["page.html"]),
        (["operators"], [*names(), "density"]),
        (["catalog"], ["search_spaces/ties-per-block.yaml"]),
        (["check", problem / "search.yaml"], ["letters", "ready"]),
    ):
        for _ in range(2):
            said = cli(*command)
            assert said.code == 0, said.err
            for word in words:
                assert word in said.out
        json_is_pure = cli(*command, "--json") if command[0] not in ("watch", "report") else None
        if json_is_pure is not None:
            json.loads(json_is_pure.out)
            assert json_is_pure.err == ""
    assert snapshot(finished) == before
    assert "<html" in (tmp_path / "page.html").read_text()[:200]


def test_a_run_that_cannot_be_written_can_be_read(cli: Cli, run_copy: Path) -> None:
    (run_copy / "coordinator.lock").unlink(missing_ok=True)
    for path in [*run_copy.rglob("*"), run_copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for command in (["status"], ["pareto"], ["verify"]):
            assert cli(*command, run_copy, "--json").code == 0
        assert not (run_copy / "coordinator.lock").exists()
    finally:
        run_copy.chmod(0o755)
        for path in run_copy.rglob("*"):
            path.chmod(0o755)


@pytest.fixture
def exported(cli: Cli, run_copy: Path, tmp_path: Path, analytic: None) -> dict[str, Any]:
    said = cli("export", run_copy, tmp_path / "model", "--json")
    assert said.code == 0, said.err
    facts: dict[str, Any] = said.json
    return facts


class TestExport:
    """The model, its card, its recipe, and the seal of the test split."""

    def test_writes_a_checkpoint_that_transformers_loads_alone(
        self, cli: Cli, run_copy: Path, exported: dict[str, Any], tmp_path: Path
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        out = tmp_path / "model"
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.config.num_hidden_layers == 2
        assert AutoTokenizer.from_pretrained(out)("w3 w4")["input_ids"] == [3, 4]
        best = cli("show", run_copy, "best", "--json").json
        assert (exported["candidate"], exported["recipe_id"]) == (best["id"], best["recipe_id"])
        assert exported["note"] is None

    def test_writes_a_card_with_recipe_lineage_scores_and_sources(
        self, exported: dict[str, Any], tmp_path: Path
    ) -> None:
        card = (tmp_path / "model" / "README.md").read_text()
        assert f"Candidate {exported['candidate']} of the search `small`" in card
        assert "task_arithmetic" in card
        for split in ("search", "validation", "test"):
            assert f"| candidate {exported['candidate']} | {split} |" in card
        for name in ("parent:letters", "uniform"):
            assert f"| {name} | test |" in card
        assert card.count("not declared") == 3

    def test_its_recipe_builds_the_same_bytes_again(
        self, cli: Cli, run_copy: Path, exported: dict[str, Any], tmp_path: Path
    ) -> None:
        said = cli("merge", tmp_path / "model" / "recipe.yaml", tmp_path / "again", "--json")
        assert said.json["recipe_id"] == exported["recipe_id"]
        weights = (tmp_path / "model" / "model.safetensors").read_bytes()
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
        facts = cli("export", run_copy, tmp_path / "own" / "recipe.yaml", "--format", "recipe", "--json").json
        assert facts["recipe_id"] == exported["recipe_id"]
        assert cli("merge", tmp_path / "own" / "recipe.yaml", tmp_path / "third").code == 0
        assert (tmp_path / "third" / "model.safetensors").read_bytes() == weights

    def test_opens_the_test_split_once_for_each_candidate(
        self, cli: Cli, finished: Path, run_copy: Path, exported: dict[str, Any], tmp_path: Path
    ) -> None:
        assert _tested(finished) == []
        first = _tested(run_copy)
        assert first == ["parent:base", "parent:letters", "parent:digits", "uniform", exported["candidate"]]
        assert cli("export", run_copy, tmp_path / "same").code == 0
        assert _tested(run_copy) == first
        other = next(number for number in load_run(run_copy).state.asked if number != exported["candidate"])
        assert cli("export", run_copy, tmp_path / "other", "--candidate", other).code == 0
        assert _tested(run_copy) == [*first, other]
        outs = [event.out for event in read_journal(run_copy / "journal.jsonl") if isinstance(event, Exported)]
        assert outs == ["model", "same", "other"]
        assert cli("verify", run_copy).code == 0
        assert cli("status", run_copy, "--json").json["state"] == "finished"

    def test_of_a_run_that_goes_on_leaves_the_seal_alone(
        self, cli: Cli, run_copy: Path, tmp_path: Path, analytic: None
    ) -> None:
        with Lease(run_copy):
            before = snapshot(run_copy)
            facts = cli("export", run_copy, tmp_path / "model", "--json").json
            assert snapshot(run_copy) == before
        assert "without the sealed test scores" in facts["note"]
        assert {row["split"] for row in facts["scores"]} == {"search", "validation"}
        assert (tmp_path / "model" / "model.safetensors").exists()

    def test_of_a_recipe_leaves_the_seal_alone(self, cli: Cli, run_copy: Path, tmp_path: Path) -> None:
        before = snapshot(run_copy)
        said = cli("export", run_copy, tmp_path / "recipe.yaml", "--format", "recipe")
        assert said.code == 0
        assert snapshot(run_copy) == before

    def test_knee_and_numbers_name_candidates(self, cli: Cli, run_copy: Path, tmp_path: Path) -> None:
        for word in ("knee", "0"):
            out = tmp_path / f"{word}.yaml"
            facts = cli("export", run_copy, out, "--format", "recipe", "--candidate", word, "--json").json
            assert facts["candidate"] == load_run(run_copy).resolve(word)


def _tested(run: Path) -> list[int | str]:
    return [
        event.candidate
        for event in read_journal(run / "journal.jsonl")
        if isinstance(event, Evaluated) and event.split == "test"
    ]


def test_merge_builds_a_recipe_whose_folders_are_beside_it(
    cli: Cli, problem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(problem, tmp_path / "problem")
    (folder / "recipe.yaml").write_text(
        "recipe: 1\nsources: {a: {model: letters}, b: {model: digits}}\ndtype: float32\nblend: {method: linear}\n"
    )
    monkeypatch.chdir(tmp_path)
    said = cli("merge", "problem/recipe.yaml", "out")
    assert said.code == 0
    assert "wrote out" in said.out
    assert (tmp_path / "out" / "config.json").exists()


def test_a_second_coordinator_is_refused_while_the_first_one_works(config: Any, tmp_path: Path) -> None:
    refusals: list[int] = []

    def intruder(figures: object) -> None:
        if not refusals:
            with pytest.raises(RunHeldError):
                resume(tmp_path / "run", executor=steady_executor)
            refusals.append(1)

    assert start(config, tmp_path / "run", executor=steady_executor, observer=intruder).ending == "finished"
    assert refusals
    asked = [event.candidate for event in read_journal(tmp_path / "run" / "journal.jsonl") if isinstance(event, Asked)]
    assert asked == list(range(10))


def test_help_and_version_need_no_heavy_library(cli: Cli) -> None:
    assert "Commands:" in cli("--help").out
    assert "evomerge" in cli("--version").out
