"""Whatever is wrong with what a person gives: one sentence, the exit code, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.fitness.vllm.installed import installed
from evomerge.run.journal import AppendFile, open_append, read_journal
from evomerge.run.lease import Lease
from evomerge.testing.checkpoints import (
    tiny_llama_config,
    tiny_llama_tensors,
    tiny_tokenizer,
    write_checkpoint,
    write_tiny_llama,
)
from tests.cli.conftest import Cli, snapshot, write_search
from tests.run.test_resume import story


@pytest.fixture
def refused(cli: Cli, problem: Path, tmp_path: Path) -> Callable[..., None]:
    """Returns a function that starts a search with changes by dotted key, which must be refused."""
    for name in ("base", "letters", "digits", "tasks"):
        (tmp_path / name).symlink_to(problem / name)
    shutil.copy(problem / "suite.yaml", tmp_path)

    def check(
        changes: dict[str, Any], *words: str, overrides: tuple[str, ...] = (), flags: tuple[str, ...] = ()
    ) -> None:
        path = write_search(tmp_path / "search.yaml", changes)
        before = snapshot(tmp_path)
        options = [word for text in overrides for word in ("--set", text)]
        for command in (["run", path, "--out", tmp_path / "new" / "run"], ["check", path, *flags]):
            cli(*command, *options).is_refusal(*words)
        assert snapshot(tmp_path) == before
        assert not (tmp_path / "new").exists()

    return check


Refused = Callable[..., None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budjet": {}}, ["search.yaml:", "'budjet'; did you mean 'budget'?"]),
        ({"sources.base.modell": "x"}, ["search.yaml:5: sources.base.modell", "did you mean 'model'?"]),
        ({"space.groups.layer": 2}, ["search.yaml:", "space.groups.layer", "did you mean 'layers'?"]),
        ({"space.parameters": {"wieght": [0, 1]}}, ["search.yaml:", "space.parameters.wieght", "'weight'?"]),
        ({"fitness.objective": []}, ["search.yaml:", "fitness.objective", "did you mean 'objectives'?"]),
        ({"search.options.populaton": 8}, ["search.yaml:", "search.options: populaton", "'population'?"]),
        ({"executor.worker": 2}, ["search.yaml:", "executor.worker", "did you mean 'workers'?"]),
        ({"budget.evaluation": 2}, ["search.yaml:", "budget.evaluation", "did you mean 'evaluations'?"]),
        ({"engine": {"dtyp": "float32"}}, ["search.yaml:", "engine.dtyp", "did you mean 'dtype'?"]),
    ],
)
def test_unknown_keys_at_any_depth(refused: Refused, changes: dict[str, Any], words: list[str]) -> None:
    refused(changes, *words)


def test_an_unknown_key_of_a_ready_space(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("kind: parameter\nmethod: linear\ngroups: {layer: 2}\n")
    refused({"space": {"from": "space.yaml"}}, "space.yaml:3: groups.layer", "did you mean 'layers'?")


def test_an_unknown_key_of_a_suite(refused: Refused, tmp_path: Path) -> None:
    suite = "suite: 1\ninclude: tasks\ntasks:\n  - {task: letters, limt: 3}\n  - {task: digits}\n"
    (tmp_path / "suite.yaml").write_text(suite)
    refused({}, "suite.yaml:4: tasks[0].limt", "did you mean 'limit'?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("blend: {method: linear}\nlayer: []\n", ["recipe.yaml:4: layer", "did you mean 'layers'?"]),
        ("blend: {method: linear, wieght: 1.0}\n", ["recipe.yaml", "wieght", "did you mean 'weight'?"]),
        ("blend: {method: linaer}\n", ["recipe.yaml", "linaer", "did you mean 'linear'?"]),
    ],
)
def test_an_unknown_key_of_a_recipe(cli: Cli, problem: Path, tmp_path: Path, text: str, words: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"recipe: 1\nsources: {{a: {{model: {problem / 'base'}}}, b: {{model: {problem / 'digits'}}}}}\n{text}"
    )
    cli("merge", recipe, tmp_path / "out").is_refusal(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", ["sources.digits", "nowhere", "no such folder"]),
        ("suite.yaml", ["sources.digits", "this is a file"]),
        ("zoo:nowhere", ["sources.digits", "no embedded model"]),
        ("pickled", ["sources.digits", "pickled", "convert them to safetensors"]),
        ("three-layers", ["'base' has 2 layers", "'digits' has 3 layers"]),
        ("wide", ["'base' has a hidden size of 16", "'digits' has a hidden size of 32"]),
        ("many-words", ["tokenizers of 'base' and 'digits' differ", "'w32'", "`{union: [base, digits]}`"]),
        ("truncated", ["model.safetensors", "truncated"]),
        ("cut-in-the-header", ["model.safetensors", "truncated"]),
        ("broken-numbers", ["'digits'", "'model.layers.1.mlp.up_proj.weight'", "NaN or infinite"]),
        ("no-config", ["config.json", "no such file"]),
    ],
)
def test_a_source_that_cannot_be_merged(refused: Refused, tmp_path: Path, model: str, words: list[str]) -> None:
    _write_source(tmp_path / model, model)
    flags = ("--weights",) if model == "broken-numbers" else ()  # headers do not show it
    refused({"sources.digits.model": model}, *words, flags=flags)


def _write_source(folder: Path, kind: str) -> None:
    sizes: dict[str, dict[str, int]] = {
        "three-layers": {"layers": 3},
        "wide": {"hidden": 32},
        "many-words": {"vocab": 40},
    }
    if kind in sizes or kind in ("truncated", "cut-in-the-header", "no-config"):
        file = write_tiny_llama(folder, seed=5, **sizes.get(kind, {})) / "model.safetensors"
        if kind == "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        elif kind == "cut-in-the-header":
            file.write_bytes(file.read_bytes()[:20])
        elif kind == "no-config":
            (folder / "config.json").unlink()
    elif kind == "pickled":
        (write_tiny_llama(folder) / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif kind == "broken-numbers":
        config = tiny_llama_config()
        tensors = tiny_llama_tensors(config)
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
        write_checkpoint(folder, config, tensors, tokenizer=tiny_tokenizer())


def test_a_task_that_does_not_exist(cli: Cli, problem: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = cli("run", problem / "search.yaml", "--out", run, "--set", "fitness.suite=misspelt.yaml")
    said.is_refusal("misspelt.yaml", "no task 'lettres'", "did you mean 'letters'?")
    assert not run.exists()


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        ("letters.exact_mach", "did you mean 'letters.exact_match'?"),
        ("lettres.exact_match", "did you mean 'letters.exact_match'?"),
        ("1 + 2", "names no metric"),
        ("letters.exact_match.__class__", "no metric"),
        ("'a' * 1000000000", "no metric 'a'"),
        ("__import__('os').system('touch gotcha')", "not allowed"),
        ("abs(letters.exact_match)", "not allowed"),
        ("().__class__.__bases__[0]", "not allowed"),
        ("[x for x in letters.exact_match]", "not allowed"),
        ("letters['exact_match']", "not allowed"),
        ("lambda: letters.exact_match", "not allowed"),
        ("letters.exact_match ** 1000000", "not allowed"),
        ("letters.exact_match if digits.exact_match else 0", "not allowed"),
        ("(x := letters.exact_match)", "not allowed"),
        ("f'{letters.exact_match}'", "not allowed"),
        ("letters.exact_match; 1", "not arithmetic"),
        ("", "not arithmetic"),
        ("-" * 1500 + "letters.exact_match", "nested more than"),
        ("1e999 * letters.exact_match", "not allowed"),
    ],
)
def test_an_objective_that_is_not_arithmetic_over_metrics(refused: Refused, objective: str, word: str) -> None:
    refused({"fitness.objectives": [objective]}, word)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("letters.exact_match", "expected one comparison"),
        ("0 < letters.exact_match < 1", "expected one comparison"),
        ("open('x') > 0", "not allowed"),
        ("letters.x > 0", "no metric 'letters.x'"),
    ],
)
def test_a_constraint_that_is_no_comparison_of_metrics(refused: Refused, text: str, word: str) -> None:
    refused({"fitness.constraints": [text]}, word)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget.evaluations": 0}, ["search.yaml:", "budget.evaluations", "got 0"]),
        ({"budget.hours": 0}, ["search.yaml:", "budget.hours", "got 0"]),
        ({"budget.gpu_hours": -1}, ["search.yaml:", "budget.gpu_hours", "got -1"]),
        ({"budget.gpu_hours": 1}, ["budget.gpu_hours never ends this search", "gpus_per_worker"]),
        ({"budget.evaluations": "many"}, ["search.yaml:", "budget.evaluations", "'many'"]),
        ({"budget.hours": float("nan")}, ["search.yaml:", "budget.hours", "finite"]),
        ({"space.parameters": {"weight": [1.5, 0.0]}}, ["search.yaml:", "space.parameters.weight", "low < high"]),
        ({"space.method": "ties", "space.parameters": {"density": [-1, 4]}}, ["density", "must lie in (0, 1]"]),
        ({"space.groups.layers": 20}, ["space.groups.layers", "2 layers"]),
        ({"space.method": "teis"}, ["search.yaml:", "space.method", "did you mean 'ties'?"]),
        ({"space": {"from": "search_spaces/tise-per-block.yaml"}}, ["'search_spaces/ties-per-block.yaml'?"]),
        ({"space": {"method": "linear", "parameters": {"weight": 1.0, "normalize": True}}}, ["nothing to search"]),
        ({"base": None}, ["needs a base"]),
        ({"base": "bse"}, ["did you mean 'base'?"]),
        ({"search.searcher": "cmaes"}, ["search.yaml:", "search.searcher", "did you mean 'cma_es'?"]),
        ({"search.options.population": 0}, ["search.yaml:", "population", "got 0"]),
        ({"search.scalarize": [1.0]}, ["search.yaml:", "1 weights for 2 objectives"]),
        ({"engine": {"kind": "vlm"}}, ["search.yaml:", "engine.kind", "got 'vlm'"]),
        ({"engine": {"gpu_memory": 1.5}}, ["search.yaml:", "engine.gpu_memory", "1.5"]),
        ({"engine": {"device": "gpu9"}}, ["search.yaml:", "engine.device", "'gpu9'"]),
        ({"executor": {"kind": "ray", "address": "nowhere"}}, ["search.yaml:", "executor.address", "host:port"]),
        ({"fitness.suite": "fitness/zo.yaml"}, ["did you mean 'fitness/zoo.yaml'?"]),
        ({"fitness.objectives": [f"letters.exact_match + {n}" for n in range(6)]}, ["1 to 5 objectives"]),
        ({"name": "../elsewhere"}, ["search.yaml:", "name"]),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(refused: Refused, changes: dict[str, Any], words: list[str]) -> None:
    refused(changes, *words)


@pytest.mark.skipif(installed() is None, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine_args": {"max_num_seq": 8}}, ["search.yaml:", "engine.engine_args: max_num_seq", "did you mean"]),
        ({"engine_args": {"dtype": "half"}}, ["search.yaml:", "this is set by `engine.dtype`"]),
        ({"tensor_parallel": 3}, ["search.yaml:", "engine.tensor_parallel", "the model's 2 attention heads"]),
        ({"max_length": 65}, ["search.yaml:", "engine.max_length", "more than the 64 that the model was built for"]),
        ({"dtype": "bfloat16"}, ["search.yaml:", "engine.dtype", "use `dtype: float32`"]),
        ({"device": "cuda:0"}, ["search.yaml:", "engine.device", "built for the CPU"]),
    ],
)
def test_what_vllm_cannot_do_is_said_before_it_starts(
    refused: Refused, options: dict[str, Any], words: list[str]
) -> None:
    refused({"engine": {"kind": "vllm", **options}}, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budget.evaluations", ["--set budget.evaluations: expected KEY.PATH=VALUE"]),
        ("budget.evaluatons=3", ["budget.evaluatons", "did you mean 'evaluations'?"]),
        ("name.first=3", ["'name' holds a value, not keys"]),
        ("budget.evaluations=[3", ["--set budget.evaluations=[3", "not plain YAML"]),
        ("budget.evaluations=0", ["budget.evaluations", "got 0"]),
        ("=3", ["expected KEY.PATH=VALUE"]),
    ],
)
def test_overrides_that_are_wrong(refused: Refused, text: str, words: list[str]) -> None:
    refused({}, *words, overrides=(text,))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "mapping of keys"),
        (b"- a\n", "mapping of keys"),
        (b"name: [1\nbase: }\n", ":2: this is not plain YAML data"),
        (b"name: !!python/object/apply:os.system ['touch gotcha']\n", "not plain YAML data"),
        (b"name: a\nname: b\n", ":2: this is not plain YAML data: the key 'name' stands twice"),
        (b"name: \xff\n", "not UTF-8"),
        (b"name: a\n", "this key is required"),
    ],
)
def test_a_search_file_that_is_none(cli: Cli, tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_bytes(content)
    cli("run", path, "--out", tmp_path / "run").is_refusal("search.yaml", word)
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]


@pytest.mark.parametrize(
    "command",
    [["run"], ["run", "x.yaml"], ["frobnicate"], ["status"], ["export", "run", "out", "--format", "x"], ["run", "--x"]],
)
def test_words_that_are_no_command(cli: Cli, command: list[str]) -> None:
    cli(*command).is_refusal("--help`")


@pytest.mark.parametrize(
    "command",
    [
        ["status"], ["watch"], ["pareto"], ["show", "{}", "0"], ["verify"], ["report", "{}", "page.html"],
        ["export", "{}", "model"], ["resume"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["nothing", "a file", "another folder"])
def test_a_run_that_is_none(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    if kind == "a file":
        run.write_text("text")
    elif kind == "another folder":
        run.mkdir()
        (run / "notes.txt").write_text("text")
    before = snapshot(tmp_path)
    name, *rest = command
    words = [word.format(run) for word in rest] or [run]
    cli(name, *words).is_refusal(str(run))
    assert snapshot(tmp_path) == before


class TestARunThatIsThere:
    """Faults of a run folder and of what is asked of it."""

    def test_belongs_to_another_config(self, cli: Cli, problem: Path, run_copy: Path, tmp_path: Path) -> None:
        other = problem / "other.yaml"
        before = snapshot(run_copy)
        for more in ([], ["--resume"]):
            cli("run", other, "--out", run_copy, *more).is_refusal(
                "belongs to another config", "search.seed is 0 there and 1"
            )
        assert snapshot(run_copy) == before

    def test_is_not_started_twice(self, cli: Cli, problem: Path, run_copy: Path) -> None:
        before = snapshot(run_copy)
        cli("run", problem / "search.yaml", "--out", run_copy).is_refusal("evomerge resume")
        assert snapshot(run_copy) == before

    def test_other_files_in_the_folder_stay(self, cli: Cli, problem: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("text")
        cli("run", problem / "search.yaml", "--out", tmp_path).is_refusal("thesis.tex", "new or empty")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("text", ["search.seed=1", "space.method=linear", "budget.evaluations=0", "budget.evals=3"])
    def test_continues_under_its_own_settings(self, cli: Cli, run_copy: Path, text: str) -> None:
        before = snapshot(run_copy)
        cli("resume", run_copy, "--set", text).is_refusal("--set")
        assert snapshot(run_copy) == before

    def test_has_a_broken_line_in_its_journal(self, cli: Cli, run_copy: Path, tmp_path: Path) -> None:
        journal = run_copy / "journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join([*lines[:6], lines[6].replace(b'"candidate"', b'"candidat"', 1), *lines[7:]]))
        before = snapshot(run_copy)
        for command in (
            ["status", run_copy], ["pareto", run_copy], ["show", run_copy, "0"], ["verify", run_copy],
            ["resume", run_copy], ["watch", run_copy], ["report", run_copy, tmp_path / "page.html"],
            ["export", run_copy, tmp_path / "model"],
        ):  # fmt: skip
            cli(*command).is_refusal("journal.jsonl:7: broken line", "restore it from a copy")
        assert snapshot(run_copy) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

    def test_names_scores_outside_of_its_folder(self, cli: Cli, run_copy: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.safetensors"
        shutil.copy(next((run_copy / "scores").iterdir()), secret)
        _forge_scores_path(run_copy / "journal.jsonl", f"../{secret.name}")
        before = snapshot(tmp_path)
        cli("verify", run_copy).is_refusal("'../secret.safetensors'", "not the path of a score file")
        assert snapshot(tmp_path) == before

    def test_has_sources_that_changed(self, cli: Cli, problem: Path, tmp_path: Path, analytic: None) -> None:
        folder = shutil.copytree(problem, tmp_path / "problem")
        assert cli("run", folder / "search.yaml", "--out", tmp_path / "run").code == 0
        write_tiny_llama(folder / "digits", seed=9)
        before = snapshot(tmp_path)
        cli("resume", tmp_path / "run", "--set", "budget.evaluations=20").is_refusal("sources.digits", "has changed")
        cli("export", tmp_path / "run", tmp_path / "model").is_refusal("sources.digits", "has changed")
        after = snapshot(tmp_path)
        assert {name for name in after if after[name] != before.get(name)} <= {"run/coordinator.lock"}

    def test_is_held_by_another_coordinator(self, cli: Cli, problem: Path, run_copy: Path, analytic: None) -> None:
        with Lease(run_copy):
            before = snapshot(run_copy)
            cli("resume", run_copy).is_refusal("the run is held by process", str(os.getpid()), code=3)
            resume = ("run", problem / "search.yaml", "--out", run_copy, "--resume")
            cli(*resume).is_refusal("the run is held by process", code=3)
            assert snapshot(run_copy) == before

    @pytest.mark.parametrize("candidate", ["99", "worst", "parent:nobody", "1.5"])
    def test_has_no_such_candidate(self, cli: Cli, run_copy: Path, tmp_path: Path, candidate: str) -> None:
        cli("show", run_copy, candidate).is_refusal("no candidate", candidate)
        out = tmp_path / "out"
        for kind in ("checkpoint", "recipe", "mergekit"):
            cli("export", run_copy, out, "--candidate", candidate, "--format", kind).is_refusal(
                "no candidate", candidate
            )
        assert not out.exists()

    def test_is_exported_to_a_place_that_is_free(
        self, cli: Cli, run_copy: Path, tmp_path: Path, analytic: None
    ) -> None:
        out = tmp_path / "taken"
        out.mkdir()
        before = snapshot(tmp_path)
        for kind in ("checkpoint", "recipe"):
            cli("export", run_copy, out, "--format", kind).is_refusal("taken", "exists already")
        assert snapshot(tmp_path) == before


def _forge_scores_path(journal: Path, path: str) -> None:
    """Let the last line that names scores name another file, with checksums that hold."""
    from evomerge.run.lines import chain, dump

    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    chosen = max(index for index, line in enumerate(lines) if line.get("scores"))
    lines[chosen]["scores"] = path
    checksum, texts = "", []
    for line in lines:
        del line["checksum"]
        checksum = chain(checksum, line)
        texts.append(dump({**line, "checksum": checksum}) + "\n")
    journal.write_text("".join(texts))


class _SmallDisk:
    """A journal file on a disk that takes so many bytes; the last write is taken in part."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = open_append(path)
        self._room = room

    def write(self, data: bytes, /) -> int | None:
        if self._room == 0:
            raise OSError(28, "No space left on device")
        taken = self._file.write(data[: self._room])
        self._room -= taken or 0
        return taken

    def truncate(self, size: int, /) -> int:
        return self._file.truncate(size)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_ends_the_command_with_a_sentence_and_the_run_loses_nothing(
    cli: Cli, problem: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analytic: None
) -> None:
    run = tmp_path / "run"
    whole = (finished / "journal.jsonl").stat().st_size
    with monkeypatch.context() as patch:
        opener: Callable[[Path], AppendFile] = lambda path: _SmallDisk(path, whole // 2)  # noqa: E731
        patch.setitem(_writer_defaults(), "opener", opener)
        said = cli("run", problem / "search.yaml", "--out", run, "--plain")
    assert said.code == 1
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith(f"error: {run / 'journal.jsonl'}: journaling failed (No space left")
    kept = read_journal(run / "journal.jsonl")
    assert len(kept) > 5
    assert cli("status", run, "--json").json["state"] == "interrupted"
    assert cli("resume", run, "--plain").code == 0
    assert story(run) == story(finished)
    assert read_journal(run / "journal.jsonl")[: len(kept)] == kept


def _writer_defaults() -> dict[str, Any]:
    from evomerge.run.journal import JournalWriter

    return JournalWriter.__init__.__kwdefaults__


def test_a_disk_that_refuses_a_score_file_ends_the_command_with_a_sentence(
    cli: Cli, problem: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analytic: None
) -> None:
    run = tmp_path / "run"
    real = os.fsync
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 30:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = cli("run", problem / "search.yaml", "--out", run, "--plain")
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith(f"error: {run}")
    assert "No space left on device" in said.err
    assert cli("resume", run, "--plain").code == 0
    assert story(run) == story(finished)
