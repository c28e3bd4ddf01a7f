"""Commands that only read: status, watch, pareto, show, verify, operators, catalog."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evomerge.cli.output import duration, json_option, print_json, print_table, with_error

if TYPE_CHECKING:
    from evomerge.run.view import Run

_run_argument = click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
_split_option = click.option(
    "--split", type=click.Choice(["search", "validation", "test"]), default="search", show_default=True
)


@click.command()
@_run_argument
@json_option
def status(path: Path, *, as_json: bool) -> int:
    """Say where RUN stands."""
    from evomerge.run.view import load_run

    facts = load_run(path).status()
    if as_json:
        print_json(facts)
        return 0
    counts = facts["evaluations"]
    rows = [
        ("state", facts["state"]),
        ("evaluations", ", ".join(f"{count} {word}" for word, count in counts.items())),
        *((f"best {name}", f"{value:.4f}") for name, value in facts["best"].items()),
        ("hypervolume", f"{facts['hypervolume']:.5f}"),
        ("front", f"{facts['front_size']} candidates"),
        ("elapsed", duration(facts["elapsed_s"])),
        ("budget", _listed(facts["budget"])),
        ("spent", _listed(facts["spent"])),
    ]
    if facts["busy_share"] is not None:
        rows.append(("workers", f"{len(facts['workers'])}, busy {facts['busy_share']:.1%} of the time"))
    print_table(f"Run {facts['run']}", ("", ""), rows, numbers_from=2)
    return 0


def _listed(amounts: dict[str, float | None]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in amounts.items() if value is not None)


@click.command()
@_run_argument
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def watch(path: Path, every_s: float, *, plain: bool) -> int:
    """Show RUN live until it stops running (or Ctrl-C); viewing never resumes it."""
    from evomerge.cli.live import LiveView
    from evomerge.run.view import load_run

    run = load_run(path)
    with LiveView(path, plain=plain or None) as view:
        view.watch(run)
        view({})
        while run.condition() == "running":
            time.sleep(every_s)
            view({})
    return 0


@click.command()
@_run_argument
@_split_option
@json_option
def pareto(path: Path, split: Any, *, as_json: bool) -> int:
    """Print the Pareto front of RUN over all feasible candidates."""
    from evomerge.run.view import load_run

    run = load_run(path)
    front = run.pareto(split)
    if as_json:
        print_json(front)
        return 0
    names = run.state.objectives
    rows = [
        (
            str(row["id"]),
            *(with_error(row["objectives"][name]["mean"], row["objectives"][name]["stderr"]) for name in names),
            row["recipe_id"][:12],
        )
        for row in front
    ]
    print_table(f"Pareto front, {split} split ({len(front)} candidates)", ("id", *names, "recipe"), rows)
    return 0


@click.command()
@_run_argument
@click.argument("candidate", metavar="ID", required=False)
@click.option("--skills", is_flag=True, help="Instead of one candidate: which candidates can do what, and together.")
@json_option
def show(path: Path, candidate: str | None, *, skills: bool, as_json: bool) -> int:
    """Print one candidate of RUN: a number, `best`, `knee`, or a reference such as `uniform`."""
    from evomerge.run.view import load_run

    run = load_run(path)
    if skills == (candidate is not None):
        raise click.UsageError("give the ID of a candidate (a number, `best`, `knee`, a reference), or --skills")
    if candidate is None:
        return _show_skills(run, as_json=as_json)
    facts = run.show(run.resolve(candidate))
    if as_json:
        print_json(facts)
        return 0
    rows = [
        (
            evaluation["split"],
            evaluation["state"],
            name,
            with_error(value["mean"], value["stderr"]),
            str(value["samples"]),
        )
        for evaluation in facts["evaluations"]
        for name, value in evaluation["objectives"].items()
    ]
    asked = run.state.asked.get(facts["id"])
    origin = "reference" if asked is None else asked.origin or "searched"
    print_table(
        f"Candidate {facts['id']} ({origin}), recipe {facts['recipe_id'][:12]}",
        ("split", "state", "objective", "mean ± s.e.", "documents"),
        rows,
        numbers_from=3,
    )
    click.echo(run.recipe(facts["id"]).to_yaml(), nl=False)
    return 0


def _show_skills(run: Run, *, as_json: bool) -> int:
    from evomerge.run.skill_map import skill_map

    facts = skill_map(run).to_json()
    if as_json:
        print_json(facts)
        return 0
    count = sum(cluster["samples"] for cluster in facts["clusters"])
    click.echo(f"{count} samples; coverage {facts['coverage']:.3f}, entropy {facts['entropy']:.3f} bits")
    print_table(
        "Members of the archive",
        ("id", "mean score", "share", "owns"),
        [
            (str(member["id"]), f"{member['mean']:.3f}", f"{member['share']:.1f}", str(member["owns"]))
            for member in facts["members"]
        ],
    )
    print_table(
        "Clusters of samples",
        ("cluster", "samples", "mean score", "best member", "its score"),
        [
            (
                str(each["cluster"]),
                str(each["samples"]),
                f"{each['mean']:.3f}",
                str(each["best"]["id"]),
                f"{each['best']['mean']:.3f}",
            )
            for each in facts["clusters"]
        ],
    )
    print_table(
        "Complementary parents",
        ("first", "second", "both together", "gain"),
        [
            (str(pair["first"]), str(pair["second"]), f"{pair['union']:.3f}", f"{pair['gain']:.3f}")
            for pair in facts["pairs"]
        ],
    )
    return 0


@click.command()
@_run_argument
@json_option
def verify(path: Path, *, as_json: bool) -> int:
    """Replay RUN from its journal and compare every candidate and every score."""
    from dataclasses import asdict

    from evomerge.run.replay import verify as verify_run

    report = asdict(verify_run(path))
    if as_json:
        print_json(report)
        return 0
    click.echo(
        f"verified: {report['events']} journal lines, {report['candidates']} candidates asked again and equal, "
        f"{report['scores_files']} score files intact, {report['objectives']} results computed again and equal, "
        f"{report['open']} open"
    )
    return 0


@click.command()
@json_option
def operators(*, as_json: bool) -> int:
    """List the merge methods and their parameters."""
    from evomerge.operators import specs

    if as_json:
        print_json([spec.data() for spec in specs()])
        return 0
    for spec in specs():
        limits = f"{spec.min_sources}" if spec.min_sources == spec.max_sources else f"{spec.min_sources} or more"
        base = " beside the base" if spec.base == "required" else ""
        needs = " Needs statistics of each source (evomerge stats)." if spec.needs else ""
        print_table(
            f"{spec.name}: {spec.summary}\n  {spec.paper}. Sources: {limits}{base}. Scope: {spec.scope}.{needs}",
            ("parameter", "allowed", "default", "searched", "each source"),
            (
                (
                    item.name,
                    " | ".join(item.choices) or ("true | false" if item.kind == "bool" else item.range_text()),
                    str(item.default),
                    "on request" if item.search is None else f"[{item.search[0]:g}, {item.search[1]:g}]",
                    "yes" if item.per_source else "",
                )
                for item in spec.parameters
            ),
            numbers_from=5,
        )
    return 0


@click.command()
@json_option
def catalog(*, as_json: bool) -> int:
    """List the ready search spaces, benchmark suites, cluster files and embedded models."""
    from evomerge.catalog import catalog_entries, catalog_root
    from evomerge.checkpoints import zoo_names

    entries = {**catalog_entries(), "models": tuple(f"zoo:{name}" for name in zoo_names())}
    if as_json:
        print_json(entries)
        return 0
    click.echo(f"The catalogue lies in {catalog_root()}; a search file names its entries as they stand here.")
    for folder, names in entries.items():
        click.echo(f"\n{folder}")
        for name in names:
            click.echo(f"  {name}")
    return 0
