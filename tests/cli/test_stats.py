"""`evomerge stats` and merges with what it writes, from the command line to a model that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints import open_checkpoint
from tests.cli.conftest import Cli, write_search


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the statistics of two embedded models, and recipes that use them."""
    from evomerge.cli.main import run_command

    folder = tmp_path_factory.mktemp("measured")
    for model, task in (("math", "sums"), ("japanese", "japanese")):
        arguments = ["stats", f"zoo:{model}", folder / model, "--data", f"zoo:{task}", "--examples", 48]
        assert run_command([str(argument) for argument in [*arguments, "--device", "cpu"]]) == 0
    for method in ("linear", "fisher", "regmean", "ota"):
        importance = ", importance: fisher" if method == "ota" else ""
        (folder / f"{method}.yaml").write_text(
            "recipe: 1\n"
            "sources:\n"
            "  base: {model: zoo:base}\n"
            "  math: {model: zoo:math, statistics: math}\n"
            "  ja: {model: zoo:japanese, statistics: japanese}\n"
            "base: base\n"
            f"blend: {{method: {method}, weight: {{math: 1.0, ja: 1.0}}{importance}}}\n"
        )
    return folder


def test_a_statistic_that_is_there_is_kept(cli: Cli, measured: Path) -> None:
    again = (
        "stats",
        "zoo:math",
        measured / "math",
        "--data",
        "zoo:sums",
        "--examples",
        48,
        "--device",
        "cpu",
        "--json",
    )
    facts = cli(*again).json
    assert [(fact["kind"], fact["kept"], fact["examples"]) for fact in facts] == [
        ("fisher", True, 48),
        ("gram", True, 48),
    ]
    assert all(len(fact["content_hash"]) == 64 for fact in facts)
    cli(*again[:-1], "--seed", 1).is_refusal("fisher.safetensors", "give another folder")


def test_merges_with_statistics_load_in_transformers_and_differ_from_the_mean(
    cli: Cli, measured: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    found = {}
    for method in ("linear", "fisher", "regmean", "ota"):
        assert cli("merge", measured / f"{method}.yaml", tmp_path / method).code == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / method)
        assert bool(torch.isfinite(model(torch.tensor([[1, 5, 6, 7]])).logits).all())
        found[method] = model.model.layers[1].mlp.down_proj.weight
    for method in ("fisher", "regmean", "ota"):
        assert not torch.allclose(found[method], found["linear"], rtol=1e-3, atol=1e-4)


def test_regmean_keeps_more_of_two_skills_than_the_mean(cli: Cli, measured: Path, tmp_path: Path) -> None:
    """With 48 questions of each it answers a tenth more of the sums; margins are far from chance (300 questions)."""
    from transformers import AutoModelForCausalLM

    from evomerge.demo.evaluate import encode, exact_match
    from evomerge.demo.skills import SKILLS
    from evomerge.demo.tasks import documents

    scores = {}
    for method in ("linear", "regmean"):
        assert cli("merge", measured / f"{method}.yaml", tmp_path / method).code == 0
        model = AutoModelForCausalLM.from_pretrained(tmp_path / method, dtype=torch.float32)
        model.train(mode=False)
        scores[method] = {
            name: float(exact_match(model, *encode(documents(SKILLS[name], 300, 0))).double().mean())
            for name in ("sums", "japanese")
        }
    assert scores["regmean"]["sums"] > scores["linear"]["sums"] + 0.1
    assert scores["regmean"]["japanese"] > 0.9


def test_second_moments_are_taken_over(cli: Cli, measured: Path, tmp_path: Path) -> None:
    from evomerge.checkpoints import resolve_model

    source = open_checkpoint(resolve_model("zoo:math", None, tmp_path))
    moments = {f"{name}.exp_avg_sq": torch.full(source.info(name).shape, 1e-12) for name in source.names()}
    save_file(moments, tmp_path / "optimizer.safetensors")
    said = cli("stats", "zoo:math", tmp_path / "out", "--moments", tmp_path / "optimizer.safetensors", "--json")
    assert [(fact["kind"], fact["tensors"]) for fact in said.json] == [("adam", len(moments))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("zoo:math", "OUT"), ("--data", "--moments")),
        (("zoo:mth", "OUT", "--data", "zoo:sums"), ("did you mean 'math'",)),
        (("zoo:math", "OUT", "--data", "zoo:sum"), ("did you mean 'sums'",)),
        (("zoo:math", "OUT", "--data", "none.txt"), ("none.txt", "cannot be read")),
        (("zoo:math", "OUT", "--moments", "optimizer.pt"), ("optimizer.pt", "pickle", "docs/statistics.md")),
        (("zoo:math", "OUT", "--data", "zoo:sums", "--device", "tpu"), ("'tpu'",)),
    ],
)
def test_bad_input_is_one_sentence(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    used = [tmp_path / "out" if argument == "OUT" else argument for argument in arguments]
    cli("stats", *used).is_refusal(*words)


def test_a_recipe_with_the_statistics_of_another_model_is_one_sentence(
    cli: Cli, measured: Path, tmp_path: Path
) -> None:
    text = (measured / "fisher.yaml").read_text().replace("statistics: japanese", f"statistics: {measured / 'math'}")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("statistics: math}", f"statistics: {measured / 'math'}}}"))
    cli("merge", wrong, tmp_path / "out").is_refusal("sources.ja", "computed for another model")


def test_a_search_over_a_method_without_its_statistics_is_refused_before_it_starts(
    cli: Cli, problem: Path, tmp_path: Path
) -> None:
    changes = {"space.method": ["task_arithmetic", "regmean"], "fitness.suite": str(problem / "suite.yaml")}
    sources = {f"sources.{alias}.model": str(problem / alias) for alias in ("base", "letters", "digits")}
    search = write_search(tmp_path / "search.yaml", {**changes, **sources})
    cli("check", search).is_refusal("sources.base: method 'regmean' needs the statistic 'gram'", "`evomerge stats`")
