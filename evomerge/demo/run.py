"""`evomerge demo`: the main job on the embedded models, from nothing to an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evomerge.cli.live import LiveView
from evomerge.cli.output import INTERRUPTED, print_table, say, with_error
from evomerge.errors import ConfigError
from evomerge.run.export import export_checkpoint, score_rows
from evomerge.run.load import load_config
from evomerge.run.observer import Ending
from evomerge.run.session import resume, start
from evomerge.run.view import Json, Run, load_run

CONFIG = Path(__file__).with_name("demo.yaml")
"""The demo's search file."""
RUNS = Path("runs")


def write_demo_config(path: Path) -> None:
    """Write the demo's search file, to be edited and run.

    Raises:
        ConfigError: when the file exists.
    """
    if path.exists():
        raise ConfigError(f"{path}: this exists already; give a file that does not")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CONFIG.read_text(encoding="utf-8"), encoding="utf-8")


def run_demo(out: Path | None, *, plain: bool | None = None) -> int:
    """Search, export the best, load it with plain transformers, and print how it compares.

    Args:
        out: the run folder; an unfinished demo there is resumed. None: `runs/demo`, or the next free name beside it.
        plain: lines instead of the live view; None: where the output is no terminal.

    Returns:
        The exit code.
    """
    out = out or _next_folder()
    ending = _search(out, plain=plain)
    if ending == "paused":
        click.echo(f"paused; everything scored is journaled. Continue with: evomerge resume {out}", err=True)
        return INTERRUPTED
    model = out / "model"
    facts = _exported(out, model)
    run = load_run(out)
    print_comparison(run, facts)
    prompts = [prompt for _, prompt in EXAMPLES]
    for (what, prompt), answer in zip(EXAMPLES, answers(model, prompts), strict=True):
        click.echo(f"  {what}: {prompt} {answer}")
    click.echo(f"\nThe run: {out}    The model, loaded above by transformers alone: {model}")
    click.echo(f"Look closer: evomerge pareto {out}   evomerge show {out} best   evomerge report {out} report.html")
    return 0


def _next_folder() -> Path:
    """Return `runs/demo`, or the next free name where that demo was finished."""
    number = 1
    while True:
        path = RUNS / ("demo" if number == 1 else f"demo-{number}")
        if not (path / "config.yaml").exists() or load_run(path).condition() not in ("finished", "running"):
            return path
        number += 1


def _search(out: Path, *, plain: bool | None) -> Ending:
    config = load_config(CONFIG)
    with LiveView(out, plain=plain) as view:
        if (out / "config.yaml").exists():
            return resume(out, config=config, observer=view).ending
        num_experts, num_skills = len(config.sources) - 1, len(config.fitness.objectives)
        click.echo(f"Searching a merge of {num_experts} experts for {num_skills} skills.")
        return start(config, out, observer=view).ending


def _exported(out: Path, model: Path) -> list[Json]:
    if model.exists():
        run = load_run(out)
        return score_rows(run, run.resolve("best"))
    facts: list[Json] = export_checkpoint(out, model, notify=say)["scores"]
    return facts


def print_comparison(run: Run, rows: list[Json]) -> None:
    """Print what the best candidate and the references come to on the test split, best mean last."""
    names = run.state.objectives
    shown = sorted((row for row in rows if row["split"] == "test"), key=lambda row: _mean(row, names)[0])
    table = [
        (
            row["name"] + (" (best found)" if row["name"].startswith("candidate") else ""),
            *(with_error(row["objectives"][name]["mean"], row["objectives"][name]["stderr"]) for name in names),
            with_error(*_mean(row, names)),
        )
        for row in shown
    ]
    columns = ("model", *(name.partition(".")[0] for name in names), "mean of skills")
    print_table("Test split, opened once: accuracy ± standard error", columns, table)


def _mean(row: Json, names: tuple[str, ...]) -> tuple[float, float]:
    """Return the mean over skills and its standard error; skills have documents of their own."""
    values = [row["objectives"][name] for name in names]
    mean = sum(value["mean"] for value in values) / len(values)
    variance = sum((value["stderr"] or 0.0) ** 2 for value in values)
    return mean, variance**0.5 / len(values)


EXAMPLES = (("a sum", "38+47="), ("sorting in kanji", "<五二九一四は"), ("each letter once", "%fadafc="))
"""Questions that the exported model answers at the end: what is asked, and the prompt."""


def answers(model: Path, prompts: list[str]) -> list[str]:
    """Return the greedy answers of a checkpoint, loaded by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(model)
    merged: Any = AutoModelForCausalLM.from_pretrained(model)
    found = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = merged.generate(**tokens, do_sample=False, max_new_tokens=8)
        found.append(str(tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)))
    return found
