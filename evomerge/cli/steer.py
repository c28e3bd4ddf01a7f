"""Commands that steer a running search from another shell: pause, stop, budget, workers, inject, hold, ban, free."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from evomerge.cli.output import json_option, print_json
from evomerge.errors import ConfigError, StateError

if TYPE_CHECKING:
    from evomerge.run.commands import Answer, Command

POLL_S = 0.1
"""Seconds between two looks for the answer."""
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_run_argument = click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
_wait_option = click.option(
    "--no-wait", "no_wait", is_flag=True, help="Leave the command for the coordinator and do not wait for its answer."
)


def _steers(function: FunctionT) -> FunctionT:
    """Give a command what all of these take: the run first, then `--json` and `--no-wait`."""
    return click.command()(_run_argument(json_option(_wait_option(function))))  # type: ignore[return-value]


@_steers
def pause(path: Path, *, as_json: bool, no_wait: bool) -> int:
    """Let RUN finish what is being scored and leave; `evomerge resume` continues it."""
    from evomerge.run.commands import Drain

    if _condition_idle(path) == "paused":
        return _say(path, _answer("paused", "is paused already"), as_json=as_json)
    return _ask(path, Drain(command="pause"), as_json=as_json, no_wait=no_wait)


@_steers
@click.option("--mirror", metavar="URL", help="Where an idle run is copied to, which learns it too.")
def stop(path: Path, *, mirror: str | None, as_json: bool, no_wait: bool) -> int:
    """End RUN for good once what is being scored is done; also a run that is paused or was interrupted."""
    from evomerge.run.commands import Drain
    from evomerge.run.lease import is_held
    from evomerge.run.stopping import stop_idle

    if mirror is not None and not is_held(path):
        return _say(path, stop_idle(path, mirror), as_json=as_json)
    condition = _condition_idle(path)
    if condition == "stopped":
        return _say(path, _answer("stopped", "is stopped already"), as_json=as_json)
    if condition in ("paused", "interrupted"):
        return _say(path, stop_idle(path), as_json=as_json)
    return _ask(path, Drain(command="stop"), as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("changes", metavar="KEY=VALUE...", nargs=-1, required=True)
@json_option
@_wait_option
def budget(path: Path, changes: tuple[str, ...], *, as_json: bool, no_wait: bool) -> int:
    """Change the budget of RUN while it runs: `evaluations=500`, `hours=12`, `cost=null`."""
    from evomerge.run.commands import ChangeBudget

    return _ask(path, ChangeBudget(changes=_limits(changes)), as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("workers", metavar="N", type=click.IntRange(min=1, max=100_000))
@json_option
@_wait_option
def workers(path: Path, workers: int, *, as_json: bool, no_wait: bool) -> int:
    """Let RUN work with N workers from now on; surplus ones finish what they score."""
    from evomerge.run.commands import SetWorkers

    return _ask(path, SetWorkers(workers=workers), as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@json_option
@_wait_option
def inject(path: Path, recipe: Path, *, as_json: bool, no_wait: bool) -> int:
    """Let RUN score the recipe in the file RECIPE as one of its candidates."""
    from evomerge.merging import read_recipe_file
    from evomerge.run.commands import Inject
    from evomerge.run.load import absolute_source

    data = read_recipe_file(recipe).recipe.to_mapping()
    folder = recipe.resolve().parent
    data["sources"] = {alias: absolute_source(source, folder) for alias, source in data["sources"].items()}
    return _ask(path, Inject(recipe=data), as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("source", metavar="SOURCE")
@click.option("--weight", type=float, required=True, help="What its weight is, wherever the space has one for it.")
@json_option
@_wait_option
def hold(path: Path, source: str, weight: float, *, as_json: bool, no_wait: bool) -> int:
    """Pin the weight of SOURCE in what RUN tries from now on."""
    return _hold(path, source, weight, as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("source", metavar="SOURCE")
@json_option
@_wait_option
def ban(path: Path, source: str, *, as_json: bool, no_wait: bool) -> int:
    """Leave SOURCE out of what RUN tries from now on: its weight is held at 0."""
    return _hold(path, source, 0.0, as_json=as_json, no_wait=no_wait)


@click.command()
@_run_argument
@click.argument("source", metavar="SOURCE")
@json_option
@_wait_option
def free(path: Path, source: str, *, as_json: bool, no_wait: bool) -> int:
    """Let the weight of SOURCE vary again."""
    return _hold(path, source, None, as_json=as_json, no_wait=no_wait)


def _hold(path: Path, source: str, weight: float | None, *, as_json: bool, no_wait: bool) -> int:
    import math

    from evomerge.run.commands import Hold

    if weight is not None and not math.isfinite(weight):
        raise ConfigError(f"--weight: expected a finite number, got {weight}")
    return _ask(path, Hold(source=source, weight=weight), as_json=as_json, no_wait=no_wait)


def _limits(texts: Sequence[str]) -> dict[str, Any]:
    """Return limits by key.

    Raises:
        ConfigError: for a text that is no `KEY=VALUE`, or a key that no budget has.
    """
    from evomerge.documents import did_you_mean, parse_yaml
    from evomerge.run.config import BudgetConfig

    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.strip().removeprefix("budget.")
        if not sign:
            raise ConfigError(f"{text!r}: expected KEY=VALUE, for instance evaluations=500")
        if key not in BudgetConfig.model_fields:
            raise ConfigError(f"a budget has no key {key!r}{did_you_mean(key, BudgetConfig.model_fields)}")
        found[key] = parse_yaml(value, text).data
        if not isinstance(found[key], int | float | str | None):
            raise ConfigError(f"{text!r}: expected a number, or null for no limit")
    return found


def _condition(path: Path) -> str:
    from evomerge.run.view import load_run

    return load_run(path).condition()


def _condition_idle(path: Path) -> str:
    """Return where a run stands that no coordinator works on; empty where one does: no need to read the journal."""
    from evomerge.run.folder import RunFolder
    from evomerge.run.lease import is_held

    RunFolder.open(path)
    return "" if is_held(path) else _condition(path)


def _ask(path: Path, command: Command, *, as_json: bool, no_wait: bool) -> int:
    """Leave a command, wait for the answer, and say it.

    Raises:
        StateError: when no coordinator is at work.
    """
    from evomerge.run.commands import send
    from evomerge.run.folder import RunFolder
    from evomerge.run.lease import is_held

    RunFolder.open(path)
    if not is_held(path):
        raise StateError(f"{path}: no coordinator works on this run; it is {_condition(path)}{_instead(path, command)}")
    number = send(path, command)
    if no_wait:
        return _say(path, _answer("sent", f"command {number} was left for the coordinator"), as_json=as_json)
    return _say(path, _wait(path, number), as_json=as_json)


def _instead(path: Path, command: Command) -> str:
    """Return what to do where no coordinator is at work."""
    words = {
        "budget": f"; change it as you continue: evomerge resume {path} --set budget.KEY=VALUE",
        "workers": f"; change them as you continue: evomerge resume {path} --set executor.workers=N",
        "pause": "; there is nothing to pause",
        "stop": "; there is nothing to stop",
    }
    return words.get(command.command, f"; continue it with `evomerge resume {path}`, then ask again")


def _wait(path: Path, number: str) -> Answer:
    """Wait for the answer to a command.

    Raises:
        StateError: when the coordinator left without one.
    """
    from evomerge.run.commands import take_answer, withdraw
    from evomerge.run.lease import is_held

    while True:
        is_alive = is_held(path)
        answer = take_answer(path, number)
        if answer is not None:
            return answer
        if not is_alive:
            withdraw(path, number)
            raise StateError(
                f"{path}: the coordinator left before it answered; the run is {_condition(path)}, and the command was "
                "taken back"
            )
        time.sleep(POLL_S)


def _answer(state: str, text: str) -> Answer:
    from evomerge.run.commands import Answer

    return Answer(done=True, text=text, facts={"state": state})


def _say(path: Path, answer: Answer, *, as_json: bool) -> int:
    """Print an answer and return the exit code."""
    if not answer.done:
        click.echo(f"error: {answer.text}", err=True)
        return answer.exit_code or 1
    if as_json:
        print_json({"run": path.resolve().name, **answer.facts})
    else:
        goes_on = f"; continue it with: evomerge resume {path}" if answer.facts.get("state") == "paused" else ""
        click.echo(f"{path}: {answer.text}{goes_on}")
    return 0
