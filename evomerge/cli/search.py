"""Commands that search: demo, run, resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from evomerge.cli.output import INTERRUPTED

_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the search file."
)
_mirror_option = click.option(
    "--mirror", metavar="URL", help="Copy the run there all the time (s3://bucket/prefix); fetch it from there first."
)
_metrics_option = click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Serve /metrics for Prometheus, on 127.0.0.1; another HOST needs EVOMERGE_METRICS_TOKEN.",
)
_plain_option = click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="The run folder (left out: runs/demo, or the next free).")
@click.option(
    "--write-config", type=click.Path(path_type=Path), metavar="FILE", help="Write the demo's search file and stop."
)
@_plain_option
def demo(out: Path | None, write_config: Path | None, *, plain: bool) -> int:
    """Run the main job on the embedded models, from nothing to an exported model."""
    from evomerge.demo.run import run_demo, write_demo_config

    if write_config is not None:
        write_demo_config(write_config)
        click.echo(f"wrote {write_config}; start it with: evomerge run {write_config} --out RUN")
        return 0
    return run_demo(out, plain=plain or None)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run folder, made by this command.")
@click.option("--resume", "continues", is_flag=True, help="Continue OUT where it is this search's run already.")
@_set_option
@_mirror_option
@_metrics_option
@_plain_option
def run(
    config: Path,
    out: Path,
    overrides: tuple[str, ...],
    *,
    continues: bool,
    mirror: str | None,
    metrics: str | None,
    plain: bool,
) -> int:
    """Start the search of CONFIG."""
    from evomerge.cli.live import LiveView
    from evomerge.run.load import load_config, located
    from evomerge.run.session import exists, start
    from evomerge.run.session import resume as continue_run

    resolved = load_config(config, overrides)
    with _resumable(out), located(config), LiveView(out, plain=plain or None) as view:
        if continues and exists(out, mirror):
            result = continue_run(out, config=resolved, observer=view, mirror=mirror, metrics=metrics)
        else:
            result = start(resolved, out, observer=view, mirror=mirror, metrics=metrics)
    return _say_ending(result.path, result.ending)


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@_set_option
@_mirror_option
@_metrics_option
@_plain_option
def resume(path: Path, overrides: tuple[str, ...], *, mirror: str | None, metrics: str | None, plain: bool) -> int:
    """Continue the search in RUN from its journal alone, or from its mirror."""
    from evomerge.cli.live import LiveView
    from evomerge.run.session import resume as continue_run

    with _resumable(path), LiveView(path, plain=plain or None) as view:
        result = continue_run(path, overrides, observer=view, mirror=mirror, metrics=metrics)
    return _say_ending(result.path, result.ending)


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--mirror", required=True, metavar="URL", help="Where the run is copied to.")
def fetch(path: Path, mirror: str) -> int:
    """Fetch a run from its mirror to look at it or export it, without continuing it."""
    from evomerge.run.mirror import fetch as fetch_run

    lines = fetch_run(mirror, path)
    click.echo(f"{path}: {lines} new lines of the journal; look with: evomerge status {path}", err=True)
    return 0


@contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Let a second Ctrl-C, which stops at once, also say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if (path / "config.yaml").exists():
            click.echo(
                f"stopped at once; everything journaled is kept. Continue with: evomerge resume {path}", err=True
            )
        raise


def _say_ending(path: Path, ending: str) -> int:
    if ending == "paused":
        click.echo(f"paused; everything scored is journaled. Continue with: evomerge resume {path}", err=True)
        return INTERRUPTED
    from evomerge.run.view import load_run

    found = load_run(path)
    best = found.best()
    click.echo(f"{ending}: {found.state.reason}", err=True)
    if best is None:
        click.echo("no feasible candidate was found", err=True)
        return 0
    click.echo(f"best: candidate {best}. Export it with: evomerge export {path} OUT", err=True)
    return 0
