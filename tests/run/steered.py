"""Runs that are steered from within: the scorer sends commands at given calls, as another shell would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from evomerge.cluster import InlineExecutor
from evomerge.fitness.types import Evaluation, Split
from evomerge.recipe import Recipe
from evomerge.run import session
from evomerge.run.commands import FOLDER, Answer, Command, Inbox, send, take_answer
from evomerge.run.config import RunConfig
from evomerge.run.problem import Problem
from evomerge.run.session import Result, resume, start
from tests.run.small import AnalyticScorer

Order = Command | Callable[[Problem], Command]
"""A command, or what makes one of the problem."""


@dataclass
class Shell:
    """Another shell: sends commands when the run has scored so often, and takes the answers."""

    path: Path
    script: Mapping[int, Sequence[Order]]
    sent: list[str] = field(default_factory=list)

    def at(self, call: int, problem: Problem) -> None:
        for order in self.script.get(call, ()):
            command = order(problem) if callable(order) else order
            self.sent.append(send(self.path, command))

    def answers(self) -> list[Answer | None]:
        return [take_answer(self.path, number) for number in self.sent]


def steered_executor(shell: Shell, problem: Problem, kind: type[InlineExecutor] = InlineExecutor) -> InlineExecutor:
    """Return an executor whose scorer lets the shell send its commands before each call, counted from 1."""

    class Scorer(AnalyticScorer):
        calls = 0

        def score(self, recipe: Recipe, split: Split) -> Evaluation:
            self.calls += 1
            shell.at(self.calls, problem)
            return super().score(recipe, split)

    return kind(problem.config.executor, lambda: Scorer(problem))


def steer(
    config: RunConfig, path: Path, script: Mapping[int, Sequence[Order]], *, again: bool = False
) -> tuple[Result, list[Answer | None]]:
    """Run a search (or resume it) with commands by number of the scoring; return its end and the answers."""
    shell = Shell(path, script)
    executor = partial(steered_executor, shell)
    result = resume(path, executor=executor) if again else start(config, path, executor=executor)
    return result, shell.answers()


def done(answer: Answer | None) -> Answer:
    """Return an answer that must say that the command was carried out."""
    assert answer is not None
    assert answer.done, answer.text
    return answer


def refused(answer: Answer | None, *words: str, exit_code: int = 2) -> None:
    """One sentence that has these words, and the exit code."""
    assert answer is not None
    assert not answer.done
    assert answer.exit_code == exit_code
    assert "\n" not in answer.text
    for word in words:
        assert word in answer.text, answer.text


def cut(path: Path, copy: Path, lines: int) -> Path:
    """Copy a run folder as it was after so many journal lines."""
    import shutil

    shutil.copytree(path, copy)
    journal = copy / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    return copy


def put(path: Path, number: str, content: object) -> None:
    """Put a file into the inbox of a run as a careless program would."""
    (path / FOLDER).mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (path / FOLDER / f"{number}.json").write_text(text)


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinators look at their inbox after every result."""
    monkeypatch.setattr(session, "Inbox", partial(Inbox, every_s=0.0))
