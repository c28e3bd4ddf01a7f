"""Commands that build something: export, merge, report."""

from __future__ import annotations

from pathlib import Path

import click

from evomerge.cli.output import json_option, print_json, print_table, say, with_error

_out_argument = click.argument("out", metavar="OUT", type=click.Path(path_type=Path))


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@_out_argument
@click.option("--candidate", default="best", show_default=True, help="A number, `best` or `knee`.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["checkpoint", "adapter", "recipe", "mergekit"]),
    default="checkpoint",
    show_default=True,
)
@json_option
def export(path: Path, out: Path, candidate: str, kind: str, *, as_json: bool) -> int:
    """Write the best merge of RUN to OUT: a checkpoint that any server loads, an adapter, a recipe, a mergekit file.

    The adapter (PEFT) is for merges of LoRA adapters on one model by linear or task_arithmetic; the mergekit file is
    for what mergekit can make (docs/mergekit.md).
    """
    from evomerge.run.export import export_adapter, export_checkpoint, export_mergekit, export_recipe

    if kind in ("checkpoint", "adapter"):
        write = export_checkpoint if kind == "checkpoint" else export_adapter
        facts = write(path, out, candidate, notify=say)
    else:
        facts = {"recipe": export_recipe, "mergekit": export_mergekit}[kind](path, out, candidate)
    if as_json:
        print_json(facts)
        return 0
    rows = [
        (
            row["name"],
            row["split"],
            *(with_error(value["mean"], value["stderr"]) for value in row["objectives"].values()),
        )
        for row in facts["scores"]
    ]
    if rows:
        names = list(facts["scores"][0]["objectives"])
        print_table(f"Candidate {facts['candidate']}", ("model", "split", *names), rows, numbers_from=2)
    if facts.get("note"):
        click.echo(facts["note"], err=True)
    click.echo(f"wrote {out}")
    return 0


@click.command()
@click.argument("recipe", metavar="FILE", type=click.Path(path_type=Path))
@_out_argument
@click.option("--device", default="cpu", show_default=True, help="Where to do the arithmetic: cpu, cuda, cuda:1.")
@json_option
def merge(recipe: Path, out: Path, device: str, *, as_json: bool) -> int:
    """Build the model of FILE, a recipe or a mergekit configuration, in the new folder OUT."""
    from evomerge.merging import build, read_recipe_file, terminal_progress

    file = read_recipe_file(recipe)
    for note in file.notes:
        say(f"note: {note}")
    report = build(file.recipe, out, base_dir=recipe.resolve().parent, device=device, progress=terminal_progress())
    if as_json:
        print_json(
            {
                "out": str(out),
                "recipe_id": report.recipe_id,
                "tensors": report.num_tensors,
                "bytes": report.num_bytes,
                "notes": list(file.notes),
            }
        )
        return 0
    click.echo(
        f"wrote {out}: {report.num_tensors} tensors, {report.num_bytes / 1e6:.1f} MB, recipe {report.recipe_id[:12]}"
    )
    return 0


@click.command("import")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@_out_argument
def import_(path: Path, out: Path) -> int:
    """Turn FILE into the file OUT: a mergekit configuration into a recipe, one of mergekit-evolve into a search file.

    The suite of a search is written beside it.
    """
    from evomerge.documents import dump_yaml, read_yaml
    from evomerge.errors import ConfigError
    from evomerge.merging import read_recipe_file, read_search
    from evomerge.recipe.mergekit import is_genome, is_mergekit

    data = read_yaml(path).data
    if is_genome(data):
        suite = out.with_name(f"{out.stem}-suite.yaml")
        found = read_search(path, suite.name)
        texts = {out: dump_yaml(found.search), suite: dump_yaml(found.suite)}
        notes = (*found.notes, f"see what is left to say with: evomerge check {out}")
    elif is_mergekit(data):
        file = read_recipe_file(path)
        texts, notes = {out: file.recipe.to_yaml()}, file.notes
    else:
        raise ConfigError(f"{path}: this is no file of mergekit (`merge_method`) or mergekit-evolve (`genome`)")
    for name in texts:
        if name.exists():
            raise ConfigError(f"{name}: this exists already; give a file that does not")
    for name, text in texts.items():
        name.write_text(text, encoding="utf-8")
    for note in notes:
        say(f"note: {note}")
    click.echo(f"wrote {' and '.join(map(str, texts))}")
    return 0


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.html", type=click.Path(path_type=Path))
def report(path: Path, out: Path) -> int:
    """Write RUN as one self-contained HTML page."""
    from evomerge.report import write_report

    write_report(path, out)
    click.echo(f"wrote {out}")
    return 0
