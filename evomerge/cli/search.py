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
@_plain_option
def run(config: Path, out: Path, overrides: tuple[str, ...], *, continues: bool, plain: bool) -> int:
    """Start the search of CONFIG."""
    from evomerge.cli.live import LiveView
    from evomerge.run.load import load_config, located
    from evomerge.run.session import resume as continue_run
    from evomerge.run.session import start

    resolved = load_config(config, overrides)
    with _resumable(out), located(config), LiveView(out, plain=plain or None) as view:
        if continues and (out / "config.yaml").exists():
            result = continue_run(out, config=resolved, observer=view)
        else:
            result = start(resolved, out, observer=view)
    return _say_ending(result.path, result.ending)


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@_set_option
@_plain_option
def resume(path: Path, overrides: tuple[str, ...], *, plain: bool) -> int:
    """Continue the search in RUN from its journal alone."""
    from evomerge.cli.live import LiveView
    from evomerge.run.session import resume as continue_run

    with _resumable(path), LiveView(path, plain=plain or None) as view:
        result = continue_run(path, overrides, observer=view)
    return _say_ending(result.path, result.ending)


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
    click.echo(f"finished: {found.state.reason}", err=True)
    if best is None:
        click.echo("no feasible candidate was found", err=True)
        return 0
    click.echo(f"best: candidate {best}. Export it with: evomerge export {path} OUT", err=True)
    return 0
