"""The model card of an exported merge: recipe, lineage, scores with standard errors, licence of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge import __version__


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a card says of one source."""

    alias: str
    model: str
    content_hash: str
    license: str | None
    """The licence's identifier as the source's own card declares it, or None where it declares none."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of a card's score table."""

    name: str
    split: str
    scores: Mapping[str, tuple[float, float | None]]
    """Objective -> (mean, standard error)."""


def declared_license(folder: Path) -> str | None:
    """Return the licence that a model folder's README declares in its metadata, or None."""
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    if not readme.is_file():
        return None
    try:
        declared = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict().get("license")
    except (ValueError, OSError):
        return None
    return str(declared) if declared else None


def model_card(
    name: str,
    recipe_yaml: str,
    *,
    sources: Sequence[SourceFacts],
    lineage: str,
    scores: Sequence[ScoreRow],
) -> str:
    """Return the card as Markdown with Hugging Face metadata.

    Args:
        name: what the model is called.
        recipe_yaml: the native recipe, as it lies beside the card.
        sources: every source, in the recipe's order.
        lineage: one or two sentences on how the recipe was found.
        scores: lines of the score table; may be empty.
    """
    from huggingface_hub import ModelCardData

    licenses = {source.license for source in sources}
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "evomerge"],
        base_model=[source.model for source in sources if "/" in source.model and not source.model.startswith("/")] or None,
        license=next(iter(licenses)) if len(licenses) == 1 and None not in licenses else "other",
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A merge of {len(sources)} models, made by evomerge {__version__}. {lineage}",
        _score_table(scores),
        _source_table(sources),
        f"## Recipe\n\nRebuild with `evomerge merge recipe.yaml OUT`.\n\n```yaml\n{recipe_yaml}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _score_table(scores: Sequence[ScoreRow]) -> str:
    if not scores:
        return ""
    names = list(dict.fromkeys(name for row in scores for name in row.scores))
    lines = [
        "## Scores",
        "",
        "Mean ± standard error over the documents of the split.",
        "",
        f"| model | split | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for row in scores:
        cells = [_cell(*row.scores[name]) if name in row.scores else "" for name in names]
        lines.append(f"| {row.name} | {row.split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(mean: float, stderr: float | None) -> str:
    return f"{mean:.4f}" if stderr is None else f"{mean:.4f} ± {stderr:.4f}"


def _source_table(sources: Sequence[SourceFacts]) -> str:
    lines = ["## Sources", "", "| alias | model | licence | content hash |", "|---|---|---|---|"]
    lines += [
        f"| {source.alias} | {source.model} | {source.license or 'not declared'} | `{source.content_hash[:16]}` |"
        for source in sources
    ]
    return "\n".join(lines)
