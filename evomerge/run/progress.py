"""A progress bar for searches in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFRESH_S = 0.1
"""Seconds between two updates: thousands of evaluations a second must not wait for the screen."""


@contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """Show a bar in a terminal or notebook.

    Args:
        total: evaluations.
        shown: False, or a stream that is neither terminal nor notebook: nothing is shown.

    Yields:
        What to call after each evaluation, with the best value so far.
    """
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda _: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("best {task.fields[best]:.4f}"), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=total, best=float("nan"))
        done, last = 0, time.monotonic()

        def advance(best: float) -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            if now - last >= REFRESH_S or done == total:
                last = now
                progress.update(task, completed=done, best=best, refresh=True)

        yield advance
