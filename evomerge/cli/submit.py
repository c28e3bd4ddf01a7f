"""The command that runs a search as a Ray Job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evomerge.cli.output import INTERRUPTED, json_option, print_json, say

if TYPE_CHECKING:
    from evomerge.cluster.jobs import Job, JobServer
    from evomerge.run.config import RunConfig

_OUR_CODES = (1, 2, 3, INTERRUPTED)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--address",
    default="http://127.0.0.1:8265",
    show_default=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    help="The cluster's job server.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The run folder, on storage that the cluster's machines share (left out: runs/NAME, from here).",
)
@click.option("--mirror", metavar="URL", help="Copy the run there all the time; then --out need not be shared.")
@click.option("--follow", is_flag=True, help="Print the job's log until it ends, and exit with its code.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override one key of the search file."
)
@json_option
def submit(
    config: Path,
    address: str,
    out: Path | None,
    overrides: tuple[str, ...],
    *,
    mirror: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Run the search of CONFIG as a Ray Job; again, find it, or continue its run.

    One run has one job at a time, whoever submits it and how often. A job that ended before the search did is
    followed by another that continues the run.
    """
    from evomerge.cluster.jobs import JobServer
    from evomerge.run.load import load_config

    resolved = load_config(config, overrides)
    run = (out or Path("runs") / resolved.name).absolute()
    server = JobServer(address)
    job, what = _submitted(server, run, resolved, mirror)
    if follow:
        if not as_json:
            say(f"{what}: {job.id}")
        try:
            job = server.follow(job.id, lambda text: click.echo(text, nl=False, err=as_json))
        except KeyboardInterrupt:
            click.echo(f"stopped looking; the job goes on. Stop it with: {_stop(server, job)}", err=True)
            return INTERRUPTED
    if as_json:
        print_json({"job": job.id, "attempt": job.attempt, "status": job.status, "was": what, "run": str(run)})
    elif not follow:
        _say_where(server, job, what, run)
    return _code(job) if follow else 0


def _submitted(server: JobServer, run: Path, config: RunConfig, mirror: str | None) -> tuple[Job, str]:
    """Return the run's job, and whether it was `submitted`, `running`, `continued` or `finished` before."""
    from evomerge.cluster.jobs import fingerprint_of, run_key
    from evomerge.documents import dump_yaml
    from evomerge.errors import ConfigError
    from evomerge.run.folder import config_data

    if config.executor.kind != "ray":
        raise ConfigError(
            f"executor.kind: a submitted search runs on the cluster's workers; expected ray, got {config.executor.kind}"
        )
    data = config_data(config)
    fingerprint = fingerprint_of(data)
    last = server.latest(run_key(run))
    if last is not None and not last.ended:
        _refuse_another(server, last, fingerprint, run)
        return last, "running"
    if last is not None and last.status == "SUCCEEDED" and last.search == fingerprint:
        return last, "finished"
    attempt = 1 if last is None else last.attempt + 1
    job = server.submit(run, dump_yaml(data), attempt, fingerprint=fingerprint, mirror=mirror)
    _refuse_another(server, job, fingerprint, run)  # somebody else may have been quicker
    return job, "submitted" if last is None else "continued"


def _refuse_another(server: JobServer, job: Job, fingerprint: str, run: Path) -> None:
    """Refuse a search whose run is worked on with another search file."""
    from evomerge.errors import StateError

    if job.search != fingerprint:
        raise StateError(
            f"{run}: the job {job.id} works on this run with another search file; wait until it ends, stop it "
            f"with `{_stop(server, job)}`, or choose another --out"
        )


def _say_where(server: JobServer, job: Job, what: str, run: Path) -> None:
    click.echo(f"{what}: {job.id}")
    click.echo(f"run: {run}")
    if what == "finished":
        return
    click.echo(f"look: evomerge watch {run}   or   ray job logs --address {server.address} --follow {job.id}")
    click.echo(f"stop: {_stop(server, job)}   (submit again to continue)")


def _stop(server: JobServer, job: Job) -> str:
    return f"ray job stop --address {server.address} {job.id}"


def _code(job: Job) -> int:
    """Return the exit code of a job that ended: the command's own where it has one."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        click.echo("stopped; everything journaled is kept. Submit again to continue", err=True)
        return INTERRUPTED
    if job.exit_code in _OUR_CODES:
        return job.exit_code  # its log has said why
    click.echo(f"error: job {job.id}: {job.why_failed()}", err=True)
    return 1
