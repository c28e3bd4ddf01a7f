"""The command that measures a model for the merge methods that weigh sources by statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from evomerge.cli.output import json_option, print_json, size

if TYPE_CHECKING:
    from evomerge.checkpoints import ModelSource
    from evomerge.fitness.statistics import Written


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--data", help="Calibration texts: a .jsonl or text file, one a line; or zoo:TASK for an embedded model.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["fisher", "gram"]),
    multiple=True,
    default=("fisher", "gram"),
    show_default=True,
    help="What is measured; may be given twice.",
)
@click.option("--moments", type=click.Path(path_type=Path), help="Take Adam's second moments from a safetensors file.")
@click.option("--examples", type=click.IntRange(min=1), default=256, show_default=True, help="Texts at most.")
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a text at most; default 1024 or the context.")
@click.option(
    "--labels",
    type=click.Choice(["model", "text"]),
    default="model",
    show_default=True,
    help="Fisher: predict tokens drawn from the model, or those of the text (the empirical Fisher).",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the labels that are drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--adapter", help="A LoRA adapter on the model: folder or hub id.")
@json_option
def stats(  # noqa: PLR0913  one argument an option
    model: str,
    out: Path,
    *,
    data: str | None,
    kinds: tuple[Literal["fisher", "gram"], ...],
    moments: Path | None,
    examples: int,
    max_length: int | None,
    labels: Literal["model", "text"],
    seed: int,
    device: str,
    dtype: Literal["float32", "bfloat16", "float16"],
    revision: str | None,
    adapter: str | None,
    as_json: bool,
) -> int:
    """Measure MODEL (folder, hub id or zoo:NAME) on calibration texts, for methods such as fisher and regmean.

    One file a kind is written to the folder OUT, which a recipe names as `statistics` of the source. What was
    interrupted goes on where it was when the command is given again. Do not take the texts from what merges are
    scored on.
    """
    from evomerge.fitness.statistics import MeasureConfig, encode, measure, write_moments
    from evomerge.merging import terminal_progress

    if (data is None) == (moments is None):
        raise click.UsageError("give one of --data (texts to measure with) and --moments (a file to take over)")
    source = _source(model, revision, adapter)
    if moments is not None:
        written = [write_moments(source, out, moments)]
    else:
        texts = _texts(str(data), examples, seed)
        written = measure(
            source,
            out,
            encode(texts, source, examples=examples, max_length=max_length),
            kinds,
            MeasureConfig(labels=labels, seed=seed, device=device, dtype=dtype),
            terminal_progress(unit="tokens"),
        )
    if as_json:
        print_json([_facts(item) for item in written])
        return 0
    for item in written:
        click.echo(
            f"{'kept' if item.was_there else 'wrote'} {item.path}: {item.num_tensors} tensors, {size(item.num_bytes)}, "
            f"statistic {item.content_hash[:12]}"
        )
    return 0


def _source(model: str, revision: str | None, adapter: str | None) -> ModelSource:
    from evomerge.merging import open_sources
    from evomerge.recipe import Recipe

    source = {"model": model, "revision": revision, "adapter": adapter}
    recipe = {"recipe": 1, "sources": {"model": source}, "blend": {"method": "linear"}}
    return open_sources(Recipe.from_mapping(recipe), Path.cwd()).models["model"]


def _texts(data: str, examples: int, seed: int) -> Iterable[str]:
    from evomerge.fitness.statistics import read_texts

    if not data.startswith("zoo:"):
        return read_texts(Path(data))
    from evomerge.demo.tasks import training_texts

    return training_texts(data.removeprefix("zoo:"), examples, seed)


def _facts(item: Written) -> dict[str, Any]:
    facts = asdict(item.note)
    return {
        "path": str(item.path),
        "content_hash": item.content_hash,
        "kept": item.was_there,
        "tensors": item.num_tensors,
        "bytes": item.num_bytes,
        "examples": item.note.done,
        **{key: facts[key] for key in ("kind", "source", "calibration", "settings")},
    }
