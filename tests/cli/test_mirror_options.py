"""`--mirror` and `--metrics` reach the session, and a mirrored run can be fetched."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import run_command
from evomerge.cluster import InlineExecutor
from evomerge.run import session
from evomerge.run.config import RunConfig
from evomerge.run.problem import Problem, open_problem
from evomerge.run.replay import verify
from evomerge.run.session import Result
from tests.run.small import analytic_executor, small_search, write_problem


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problem(tmp_path_factory.mktemp("problem"))


@pytest.fixture(scope="module")
def config(problem: Path) -> RunConfig:
    return small_search(problem, evaluations=4)


@pytest.fixture(scope="module")
def mirror(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of a mirrored run."""
    url = f"memory://{uuid.uuid4().hex}"
    session.start(config, tmp_path_factory.mktemp("runs") / "run", executor=analytic_executor, mirror=url)
    return url


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Return what the session is asked for; nothing is searched."""
    found: list[tuple[str, Any, Any]] = []

    def noted(name: str, path: Path, options: dict[str, Any]) -> Result:
        found.append((name, options["mirror"], options["metrics"]))
        return Result(path, "paused")

    monkeypatch.setattr(session, "start", lambda config, path, **options: noted("start", path, options))
    monkeypatch.setattr(session, "resume", lambda path, *_, **options: noted("resume", path, options))
    return found


def search_file(problem: Path) -> Path:
    path = problem / "search.yaml"
    path.write_text(
        "sources: {base: {model: base}, letters: {model: letters}}\nbase: base\nspace: {method: task_arithmetic}\n"
        "fitness: {suite: suite.yaml, objectives: [letters.exact_match]}\n"
    )
    return path


def test_the_options_reach_the_session(problem: Path, tmp_path: Path, mirror: str, calls: list[Any]) -> None:
    file, out = str(search_file(problem)), str(tmp_path / "run")
    options = ["--mirror", mirror, "--metrics", "9464", "--plain"]
    run_command(["run", file, "--out", out, *options])
    run_command(["resume", out, *options])
    run_command(["run", file, "--out", out, "--plain"])
    assert calls == [("start", mirror, "9464"), ("resume", mirror, "9464"), ("start", None, None)]


def test_run_with_resume_continues_what_only_the_mirror_has(
    problem: Path, tmp_path: Path, mirror: str, calls: list[Any]
) -> None:
    file, out = str(search_file(problem)), str(tmp_path / "run")
    run_command(["run", file, "--out", out, "--resume", "--mirror", mirror, "--plain"])
    run_command(["run", file, "--out", out, "--resume", "--mirror", f"{mirror}-other", "--plain"])
    assert [name for name, _, _ in calls] == ["resume", "start"]


def test_a_mirrored_run_is_fetched_to_be_looked_at(
    tmp_path: Path, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    assert run_command(["fetch", str(out), "--mirror", mirror]) == 0
    assert run_command(["fetch", str(out), "--mirror", mirror]) == 0
    assert "0 new lines of the journal; look with: evomerge status" in capsys.readouterr().err
    assert verify(out).open == 0


def test_fetching_from_where_nothing_is_says_so_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["fetch", str(tmp_path / "copy"), "--mirror", "memory://nothing-there"]) == 2
    assert "no run is there; correct the address" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("mirrored", [False, True])
def test_every_machine_must_see_the_sources_the_suite_and_a_run_that_is_not_mirrored(
    mirrored: bool, problem: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def executor(found: Problem, visible: tuple[Path, ...]) -> InlineExecutor:
        seen.extend(visible)
        return analytic_executor(found)

    monkeypatch.setattr(session, "default_executor", executor)
    url = f"memory://{uuid.uuid4().hex}" if mirrored else None
    session.start(config, tmp_path / "run", mirror=url)
    own = [] if mirrored else [tmp_path / "run" / "config.yaml"]
    assert seen == [*(problem / name for name in ("base", "letters", "digits", "suite.yaml", "tasks")), *own]


def test_the_default_executor_hands_on_what_must_be_seen(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(session, "create_executor", lambda *arguments: given.extend(arguments))
    problem = open_problem(config)
    session.default_executor(problem, (Path("/shared"),))
    assert given == [config.executor, problem.scorer, (Path("/shared"),)]
