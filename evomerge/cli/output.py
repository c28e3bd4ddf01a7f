"""How commands print: JSON for machines, rich tables for people, plain lines where nobody looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

json_option: Callable[[FunctionT], FunctionT] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for machines."
)


def print_json(data: Any) -> None:
    """Print plain data as indented JSON, keys in the order given."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> None:
    """Print a table: the first `numbers_from` columns are text, the others are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    named = any(columns)
    table = Table(
        title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False, show_header=named, show_edge=named
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < numbers_from else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)


def say(text: str) -> None:
    """Say on standard error what is being done now."""
    click.echo(text, err=True)


def with_error(mean: float, stderr: float | None) -> str:
    """Return `0.731 ± 0.020`."""
    return f"{mean:.3f}" if stderr is None else f"{mean:.3f} ± {stderr:.3f}"


def size(count: int) -> str:
    """Return `1.5 GiB` or `12.3 MiB` for bytes."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def duration(seconds: float) -> str:
    """Return `1:02:03` or `2:03` for seconds."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
