"""Searching a piecewise space: the Gram matrices lie in the run folder, and nothing after the start needs weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError, NotBuiltError, StateError
from evomerge.recipe import Recipe
from evomerge.report import write_report
from evomerge.run.config import RunConfig
from evomerge.run.export import export_mergekit, export_recipe
from evomerge.run.grams import decode_grams, encode_grams
from evomerge.run.problem import open_problem
from evomerge.run.replay import verify
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from evomerge.spaces import Grams, PiecewiseSpace

from .small import analytic_executor, small_search, write_problem

SPACE = {"kind": "piecewise", "chromosomes": ["attention", "mlp"], "chunks": 2}


@pytest.fixture(scope="module")
def problem_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


def search(folder: Path, searcher: str = "cma_es", evaluations: int = 8, **more: Any) -> RunConfig:
    options = {"population": 4} if searcher == "cma_es" else {}
    settings = {"searcher": searcher, "seed": 0, "options": options}
    return small_search(folder, evaluations=evaluations, **{"space": SPACE, "search": settings, **more})


@pytest.fixture(scope="module")
def finished(problem_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    start(search(problem_folder), path, executor=analytic_executor)
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def artifact(run: Path) -> Path:
    return run / json.loads((run / "journal.jsonl").read_text().splitlines()[0])["grams"]


@pytest.mark.parametrize("searcher", ["cma_es", "random"])
def test_a_run_resumes_and_verifies(problem_folder: Path, tmp_path: Path, searcher: str) -> None:
    path = tmp_path / "run"
    assert start(search(problem_folder, searcher), path, executor=analytic_executor).ending == "finished"
    assert verify(path).candidates == 8
    assert resume(path, ["budget.evaluations=12"], executor=analytic_executor).ending == "finished"
    report = verify(path)
    assert (report.candidates, report.open) == (12, 0)
    straight = tmp_path / "straight"
    start(search(problem_folder, searcher, evaluations=12), straight, executor=analytic_executor)
    one, other = (
        {number: event.recipe_id for number, event in load_run(run).state.asked.items()} for run in (path, straight)
    )
    assert one == other


def test_what_is_read_afterwards_needs_no_weights(
    problem_folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a source was opened")

    monkeypatch.setattr("evomerge.checkpoints.open_checkpoint", refuse)
    monkeypatch.setattr("evomerge.merging.opening.open_checkpoint", refuse)
    verify(copy)
    run = load_run(copy)
    assert isinstance(run.space, PiecewiseSpace)
    assert run.space.cross(*run.space.founders()[:2], splits=[3, 4, 5], mix=0.5, angle="part").ends[0] == 3
    best = run.best()
    assert best is not None
    assert export_recipe(copy, copy.parent / "best.yaml")["candidate"] == best
    assert Recipe.from_yaml((copy.parent / "best.yaml").read_text()) == run.recipe(best)
    write_report(copy, copy.parent / "report.html")


def test_a_mergekit_export_is_refused_in_words(copy: Path) -> None:
    with pytest.raises(NotBuiltError, match="segments: a mergekit passthrough"):
        export_mergekit(copy, copy.parent / "out.yaml")


def test_the_matrices_that_are_gone_are_made_again(copy: Path) -> None:
    before = artifact(copy).read_bytes()
    artifact(copy).unlink()
    with pytest.raises(StateError, match="this file is missing; resume the run, which makes it again"):
        verify(copy)
    resume(copy, ["budget.evaluations=9"], executor=analytic_executor)
    assert artifact(copy).read_bytes() == before
    assert verify(copy).candidates == 9


@pytest.mark.parametrize("read", [verify, lambda path: load_run(path).space])
def test_matrices_that_were_changed_are_refused(copy: Path, read: Callable[[Path], object]) -> None:
    data = bytearray(artifact(copy).read_bytes())
    data[-1] ^= 1
    artifact(copy).write_bytes(data)
    with pytest.raises(StateError, match="was changed after it was written"):
        read(copy)


def test_sources_are_read_once_more_only_where_they_must(
    problem_folder: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the Gram matrices were computed again")

    monkeypatch.setattr("evomerge.merging.grams.block_grams", refuse)
    resume(copy, ["budget.evaluations=10"], executor=analytic_executor)
    assert open_problem(small_search(problem_folder, evaluations=4)).grams is None


def test_a_chromosome_that_the_models_do_not_have_is_refused(tmp_path: Path) -> None:
    folder = write_problem(tmp_path)
    for alias in ("base", "letters", "digits"):
        config = json.loads((folder / alias / "config.json").read_text())
        (folder / alias / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        _tie(folder / alias / "model.safetensors")
    space = {"kind": "piecewise", "chromosomes": ["head"], "chunks": 1}
    with pytest.raises(ConfigError, match=r"space\.chromosomes: the models have no weights in 'head'; leave it out"):
        open_problem(search(folder, space=space))


def _tie(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    del tensors["lm_head.weight"], tensors["model.norm.weight"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def test_the_file_says_the_matrices_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    vectors = {"mlp": list(rng.normal(size=(2, 9)).astype(np.float32)), "rest": list(np.ones((2, 4), dtype=np.float32))}
    grams = Grams.of_vectors(["a", "b"], vectors)
    found = decode_grams(encode_grams(grams))
    assert found.digest == grams.digest
    assert encode_grams(found) == encode_grams(grams)
    with pytest.raises(StateError, match="the file of Gram matrices is none"):
        decode_grams(b"nothing of the kind")
