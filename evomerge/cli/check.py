"""The command that says what can be known before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evomerge.cli.output import duration, json_option, print_json, print_table, size


@click.command()
@click.argument("config", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the search file."
)
@click.option("--weights", is_flag=True, help="Also read every weight, downloading it if need be, to refuse NaN.")
@json_option
def check(config: Path, overrides: tuple[str, ...], *, weights: bool, as_json: bool) -> int:
    """Say everything that can be known of FILE, a search, a recipe or a mergekit file, before a weight is read.

    Of models on the hub only settings, tokenizers and headers are downloaded.
    """
    from evomerge.run.preflight import check_file

    facts = check_file(config, overrides, weights=weights)
    if as_json:
        print_json(facts)
    elif not facts["problems"]:
        _say(facts)
    for text in facts["problems"]:
        click.echo(f"error: {text}", err=True)
    return 2 if facts["problems"] else 0


def _say(facts: dict[str, Any]) -> None:
    print_table(
        "Sources",
        ("alias", "model", "architecture", "dtype", "licence", "layers", "parameters", "tokens", "weights"),
        (
            (
                alias,
                row["model"] + (f" + {row['adapter']}" if row["adapter"] else ""),
                str(row["architecture"]),
                row["dtype"],
                row["license"] or "-",
                str(row["layers"]),
                f"{row['parameters']:,}",
                "-" if row["tokens"] is None else f"{row['tokens']:,}",
                size(row["bytes"]) + (" to download" if row["download_bytes"] else ""),
            )
            for alias, row in facts["sources"].items()
        ),
        numbers_from=5,
    )
    if facts["kind"] == "search":
        click.echo(f"tasks: {', '.join(facts['tasks'])}")
        click.echo(f"objectives: {', '.join(facts['objectives'])}")
        click.echo(f"dimensions: {facts['dimensions']}")
        _say_engine(facts["engine"])
    else:
        made = facts["merge"]
        click.echo(
            f"merge: {made['architecture']}, {made['layers']} layers, {made['parameters']:,} parameters in "
            f"{made['dtype']}"
        )
    if "disk" in facts:
        _say_costs(facts)
    for text in facts["notes"]:
        click.echo(f"note: {text}")
    click.echo("ready: this search can start" if facts["kind"] == "search" else "ready: this merge can be built")


def _say_engine(engine: dict[str, Any]) -> None:
    click.echo(f"engine: {engine['kind']} ({engine['reason']})")
    if "sources" in engine:
        click.echo(f"sources are kept in {engine['sources']}")
        gpu = f"{size(engine['gpu_bytes'])} of each GPU and " if engine["gpu_bytes"] else ""
        click.echo(f"peak memory of a worker, about: {gpu}{size(engine['host_bytes'])} of main memory")


def _say_costs(facts: dict[str, Any]) -> None:
    disk, time = facts["disk"], facts["time"]
    download = f" and {size(disk['download'])} of downloads" if disk["download"] else ""
    click.echo(f"disk: {size(disk['needed'])} for a merged model{download}; {size(disk['free'])} free here")
    click.echo(f"peak memory of building it, at most about: {size(facts['memory']['peak'])} beside mapped files")
    click.echo(
        f"time of building it, about: {_seconds(time['seconds'])} ({time['model']}: "
        f"{_seconds(time['merging_seconds'])} + {size(time['bytes_read'] + disk['needed'])} at "
        f"{size(int(time['disk_bytes_per_second']))}/s)"
    )


def _seconds(value: float) -> str:
    return duration(value) if value >= 60 else f"{value:.1f} s"
