"""Sources on a hub, in a run: every machine and every session works on the commits that it started with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from evomerge.cluster import InlineExecutor
from evomerge.errors import SourceError, StateError
from evomerge.run.commands import Drain, Inject
from evomerge.run.config import RunConfig
from evomerge.run.folder import RunFolder
from evomerge.run.problem import Problem, open_problem
from evomerge.run.session import resume, start
from evomerge.run.view import load_run
from evomerge.testing.checkpoints import write_tiny_llama
from tests.checkpoints.hub import write_cached
from tests.run.small import analytic_executor, small_search, write_problem
from tests.run.steered import Order, attentive, done, refused, steer

__all__ = ["attentive"]

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small problem, and `org/digits` in the cache of a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_problem(tmp_path)
    write_cached(tmp_path / "cache", "org/digits", FIRST, tmp_path / "digits")
    return tmp_path


def search(folder: Path, *, revision: str | None = None, seed: int = 0, evaluations: int = 2) -> RunConfig:
    sources = {
        "base": {"model": "base"},
        "letters": {"model": "letters"},
        "digits": {"model": "org/digits", "revision": revision},
    }
    return small_search(folder, evaluations=evaluations, seed=seed, sources=sources)


def move(folder: Path) -> None:
    """Let the hub's `main` mean other weights from now on."""
    write_cached(folder / "cache", "org/digits", SECOND, write_tiny_llama(folder / "newer", seed=9))


@pytest.mark.parametrize("revision", [None, "main"])
def test_workers_score_the_commit_that_the_coordinator_found(folder: Path, revision: str | None) -> None:
    def moving(problem: Problem) -> InlineExecutor:
        move(folder)
        return InlineExecutor(problem.config.executor, problem.scorer)

    start(search(folder, revision=revision), folder / "run", executor=moving)

    run = load_run(folder / "run")
    assert run.state.num_done == 2
    assert run.config.sources["digits"].revision == FIRST
    assert run.recipe(0).sources["digits"].revision == FIRST


@pytest.mark.usefixtures("attentive")
def test_an_injected_recipe_may_name_them_as_the_search_file_does(folder: Path) -> None:
    """Or by their commits; in a session that continues a run too."""

    def injection(weight: float, revision: str | None) -> Order:
        def command(problem: Problem) -> Inject:
            genome = tuple(
                weight if d.name.startswith("weight/") else d.from_unit(0.5) for d in problem.space.dimensions
            )
            recipe = problem.space.decode(genome).to_mapping()
            recipe["sources"]["digits"] = {"model": "org/digits", "revision": revision}
            return Inject(recipe=recipe)

        return command

    path = folder / "run"
    _, answers = steer(search(folder, evaluations=6), path, {4: [injection(0.25, None)], 5: [Drain(command="pause")]})
    move(folder)
    _, more = steer(search(folder), path, {1: [injection(0.5, None), injection(0.75, SECOND)]}, again=True)

    assert [done(answer).facts["candidate"] for answer in answers[:1]]
    done(more[0])
    refused(more[1], "sources.digits")


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_run_continues_with_its_commits_and_knows_its_search_file_again(folder: Path, revision: str | None) -> None:
    path = folder / "run"
    start(search(folder, revision=revision), path, executor=analytic_executor)
    move(folder)

    resume(path, ["budget.evaluations=4"], executor=analytic_executor)
    resume(path, config=search(folder, revision=revision, evaluations=6), executor=analytic_executor)

    assert load_run(path).state.num_done == 6
    with pytest.raises(StateError, match=r"sources\.digits\.revision is .*1111.* there and \"other\" here"):
        resume(path, config=search(folder, revision="other"), executor=analytic_executor)
    with pytest.raises(StateError, match=r"search\.seed is 0 there and 1 here"):
        resume(path, config=search(folder, revision=revision, seed=1), executor=analytic_executor)


def test_a_run_whose_note_of_commits_is_lost_still_continues_by_itself(folder: Path) -> None:
    start(search(folder), folder / "run", executor=analytic_executor)
    run = RunFolder.open(folder / "run")
    assert run.commits() == {"org/digits": FIRST}
    run.environment_path.write_text("{")
    assert run.commits() == {}
    move(folder)
    resume(folder / "run", ["budget.evaluations=4"], executor=analytic_executor)
    assert load_run(folder / "run").state.num_done == 4


def test_a_worker_whose_folder_holds_another_model_refuses(folder: Path) -> None:
    """Of the same name, size and shapes, as two fine-tunes are."""
    problem = open_problem(search(folder))
    shutil.rmtree(folder / "letters")
    write_tiny_llama(folder / "letters", seed=9)
    with pytest.raises(
        SourceError, match=r"^sources\.letters: the model \(\w{12}, not \w{12}, is .*give both"
    ) as found:
        problem.scorer()
    assert "\n" not in str(found.value)
