"""The command line in this process, over a tiny problem whose scorer is a known function of the recipe."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli.main import run_command
from evomerge.cluster import InlineExecutor
from evomerge.documents import dump_yaml
from evomerge.run.config import RunConfig
from evomerge.run.load import load_config
from evomerge.run.problem import Problem, open_problem
from evomerge.run.session import start
from tests.run.small import OBJECTIVES, AnalyticScorer, write_problem

SEARCH: dict[str, Any] = {
    "name": "small",
    "sources": {alias: {"model": alias} for alias in ("base", "letters", "digits")},
    "base": "base",
    "space": {"method": "task_arithmetic", "groups": {"layers": 2}},
    "fitness": {"suite": "suite.yaml", "objectives": list(OBJECTIVES)},
    "search": {"searcher": "cma_es", "seed": 0, "options": {"population": 4}},
    "executor": {"kind": "inline"},
    "budget": {"evaluations": 10},
    "finalists": 2,
}


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def is_refusal(self, *words: str, code: int = 2) -> None:
        """Exactly one sentence on standard error, nothing on standard output, and the exit code."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        for word in words:
            assert word in self.err


Cli = Callable[..., Said]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Returns a function that runs a command in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return call


def write_search(path: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write the search file of the tiny problem, with changes by dotted key."""
    data = copy.deepcopy(SEARCH)
    for key, value in (changes or {}).items():
        *above, last = key.split(".")
        target = data
        for part in above:
            target = target.setdefault(part, {})
        target[last] = value
    path.write_text(dump_yaml(data))
    return path


@pytest.fixture(scope="session")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models, tasks and suites, with `search.yaml` and `other.yaml` (another seed); not to be changed."""
    folder = write_problem(tmp_path_factory.mktemp("problem"))
    write_search(folder / "search.yaml")
    write_search(folder / "other.yaml", {"search.seed": 1})
    (folder / "misspelt.yaml").write_text("suite: 1\ninclude: tasks\ntasks: [{task: lettres}, {task: digits}]\n")
    return folder


@pytest.fixture(scope="session")
def config(problem: Path) -> RunConfig:
    return load_config(problem / "search.yaml")


@pytest.fixture(scope="session")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    start(config, path, executor=steady_executor)
    return path


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return shutil.copytree(finished, tmp_path / "run")


class SteadyScorer(AnalyticScorer):
    """The analytic scorer, where every recipe gives a working model."""

    infeasible_below = 0


def steady_executor(problem: Problem) -> InlineExecutor:
    """Return an executor that scores in this process with the steady scorer."""
    return InlineExecutor(problem.config.executor, lambda: SteadyScorer(problem))


def opened_analytic(config: RunConfig, **more: Any) -> Problem:
    """Open a problem that is scored by the steady scorer."""
    problem = open_problem(config, **more)
    return replace(problem, scorer=partial(SteadyScorer, problem))


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every command of this process score with the analytic scorer."""
    for module in ("session", "export"):
        monkeypatch.setattr(f"evomerge.run.{module}.open_problem", opened_analytic)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file of a folder by path: content and time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
