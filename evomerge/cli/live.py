"""The live view of a run: a panel on a terminal, plain lines elsewhere. It reads the journal and never writes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evomerge.cli.output import duration
from evomerge.run.observer import DRAINING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from evomerge.run.view import Run

PLAIN_EVERY_S = 10.0
"""Seconds between two lines where the output is not a terminal."""

_ELSEWHERE = (DRAINING, "busy_share")
"""Figures with a place of their own."""
_FINISHING = "finishing what is being scored; Ctrl-C again stops at once"


class LiveView:
    """Shows a run while it runs; an `Observer` of the coordinator, and what `evomerge watch` shows.

    Args:
        path: the run folder; it may not exist yet.
        plain: lines instead of a panel; left out: unless standard error is a terminal.
        clock: seconds, for the rhythm of plain lines.
    """

    def __init__(self, path: Path, *, plain: bool | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._plain = not sys.stderr.isatty() if plain is None else plain
        self._clock = clock
        self._run: Run | None = None
        self._live: Live | None = None
        self._stack = ExitStack()
        self._last_line_s = float("-inf")
        self._last_text = ""

    def __enter__(self) -> Self:
        if not self._plain:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            self._live = self._stack.enter_context(Live(console=console, refresh_per_second=4, transient=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._run is not None:
            self._show({}, last=True)
        self._stack.close()

    def watch(self, run: Run) -> None:
        """Show this run, which is at the path that was given, instead of reading it once more."""
        self._run = run

    def __call__(self, figures: Mapping[str, float | int | str]) -> None:
        """Show the run as it stands now, or say that it drains."""
        if figures.keys() == {DRAINING}:
            # Within a signal handler, where streams may be half way through a write: past them, to the descriptor.
            with suppress(OSError):
                os.write(2, f"\n{figures[DRAINING]}: {_FINISHING}\n".encode())
        else:
            self._show(figures, last=False)

    def _show(self, figures: Mapping[str, float | int | str], *, last: bool) -> None:
        from evomerge.run.view import Run

        if self._run is None:
            self._run = Run(self._path)
        else:
            self._run.refresh()
        if self._live is not None:
            self._live.update(panel(self._run, figures))
            return
        now = self._clock()
        if last or now - self._last_line_s >= PLAIN_EVERY_S:
            text = line(self._run, figures)
            if text != self._last_text:
                print(text, file=sys.stderr, flush=True)  # noqa: T201
            self._last_line_s, self._last_text = now, text


def pace(run: Run, status: Mapping[str, Any]) -> tuple[float, float | None]:
    """Return (evaluations a minute, seconds left until the evaluation budget is spent, or None)."""
    done = int(status["evaluations"]["done"])
    minutes = float(status["elapsed_s"]) / 60
    rate = done / minutes if minutes > 0 else 0.0
    budget = run.budget.evaluations
    left = None if budget is None or rate == 0 else max(0, budget - done) / rate * 60
    return rate, left


def line(run: Run, figures: Mapping[str, float | int | str]) -> str:
    """Return one line of plain text on where a run stands."""
    status = run.status()
    rate, left = pace(run, status)
    counts = status["evaluations"]
    budget = run.budget.evaluations
    parts = [
        f"[{duration(status['elapsed_s'])}] {status['state']}",
        f"{counts['done']}{'' if budget is None else f'/{budget}'} evaluations",
        f"{rate:.0f}/min",
        *(f"best {name} {value:.3f}" for name, value in status["best"].items()),
        *_scalar_part(run),
        f"front {status['front_size']}",
        f"hypervolume {status['hypervolume']:.4f}",
        *_busy_part(status, figures),
    ]
    if "generation" in figures:
        parts.insert(2, f"generation {figures['generation']}")
    if left is not None and status["state"] == "running":
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def _scalar_part(run: Run) -> list[str]:
    latest = run.state.archives["search"].latest if run.state.archives else None
    best = latest.best if latest else None
    rule = run.config.search.scalarize
    word = rule if isinstance(rule, str) else "weighted"
    return [] if best is None or len(run.state.objectives) == 1 else [f"best {word} {best:.3f}"]


def _busy_part(status: Mapping[str, Any], figures: Mapping[str, float | int | str]) -> list[str]:
    """Return how busy the workers are: in this session since they were ready, or else as the journal tells."""
    share = figures.get("busy_share", status["busy_share"])
    return [] if share is None else [f"busy {float(share):.0%}"]


def panel(run: Run, figures: Mapping[str, float | int | str]) -> RenderableType:
    """Return the live panel of a run for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    status = run.status()
    rate, left = pace(run, status)
    counts, budget = status["evaluations"], run.budget.evaluations
    head = Text.assemble(
        (f"{counts['done']}{'' if budget is None else f' of {budget}'} evaluations", "bold"),
        f"   {rate:.1f}/min   elapsed {duration(status['elapsed_s'])}",
        "" if left is None or status["state"] != "running" else f"   ETA {duration(left)}",
    )
    troubles = [f"{counts[word]} {word}" for word in ("failed", "infeasible") if counts[word]]
    foot = Text.assemble(
        f"front {status['front_size']}   hypervolume {status['hypervolume']:.4f}   running {counts['running']}",
        *("   " + text for text in _busy_part(status, figures)),
        *(("   " + text, "yellow") for text in troubles),
    )
    extra = "   ".join(
        f"{key.replace('_', ' ')} {_short(value)}" for key, value in figures.items() if key not in _ELSEWHERE
    )
    parts: list[RenderableType] = [head]
    if budget is not None:
        parts.append(ProgressBar(total=budget, completed=min(counts["done"], budget), width=60))
    parts += [_objective_table(run), foot]
    if extra:
        parts.append(Text(extra, style="dim"))
    if DRAINING in figures:
        parts.append(Text(f"{figures[DRAINING]}: {_FINISHING}", style="yellow"))
    return Panel(Group(*parts), title=f"evomerge  {run.config.name}", subtitle=status["state"], expand=False)


def _objective_table(run: Run) -> RenderableType:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    names = run.state.objectives
    table.add_column("")
    for name in (*names, "scalarised"):
        table.add_column(name, justify="right", no_wrap=True)
    archive = run.state.archives.get("search")
    if archive is None:
        return table
    winners = archive.best_per_objective()
    best = archive.best()
    for word, number in {**{f"best {name}": winners.get(name) for name in names}, "best": best}.items():
        if number is None:
            continue
        values = archive.entry(number).objectives
        table.add_row(f"{word} (#{number})", *(f"{value:.3f}" for value in values), _scalar(run, number))
    for name in run.compared():
        event = run.state.evaluations.get((name, "search"))
        if event is not None and event.objectives:
            cells = [f"{event.objectives[objective]:.3f}" for objective in names]
            table.add_row(name, *cells, _scalar(run, name), style="dim")
    return table


def _scalar(run: Run, candidate: int | str) -> str:
    value = run.value(candidate, "search")
    return "" if value is None else f"{value:.3f}"


def _short(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
