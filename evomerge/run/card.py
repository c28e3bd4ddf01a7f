"""The model card of an exported merge: recipe, lineage, scores with standard errors, licence of each source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge import __version__

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""`owner/name`; folders are shown by their last part, and `zoo:` models are not on the hub."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a card says of one source."""

    alias: str
    model: str
    content_hash: str
    license: str | None
    """The licence's identifier as the source's own card declares it, or None where it declares none."""
    adapter: str | None = None
    """The LoRA adapter on the model, where there is one."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of a card's score table."""

    name: str
    split: str
    scores: Mapping[str, tuple[float, float | None]]
    """Objective -> (mean, standard error)."""


def declared_license(folder: Path) -> str | None:
    """Return the licence that a model folder's README declares in its metadata, or None."""
    import yaml
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    if not readme.is_file():
        return None
    try:
        declared = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict().get("license")
    except (ValueError, OSError, yaml.YAMLError):
        return None
    if isinstance(declared, list):
        return ", ".join(map(str, declared)) or None
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

    named = dict.fromkeys(name for source in sources for name in (source.model, source.adapter) if name is not None)
    on_hub = [name for name in named if _HUB_ID.fullmatch(name)]
    data = ModelCardData(
        library_name="transformers",
        tags=["merge", "evomerge"],
        base_model=on_hub or None,
        base_model_relation="merge" if on_hub else None,
        license=_common_license(sources),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A merge of {len(sources)} models, made by evomerge {__version__}. {lineage}",
        _score_table(scores),
        _source_table(sources),
        f"## Recipe\n\nRebuild with `evomerge merge recipe.yaml OUT`.\n\n```yaml\n{recipe_yaml.rstrip()}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _common_license(sources: Sequence[SourceFacts]) -> str | None:
    """Return the licence of all sources, `other` where they differ, None where one declares none: it is not known."""
    licenses = {source.license for source in sources}
    if None in licenses or not licenses:
        return None
    return licenses.pop() if len(licenses) == 1 else "other"


def _score_table(scores: Sequence[ScoreRow]) -> str:
    if not scores:
        return ""
    names = list(dict.fromkeys(name for row in scores for name in row.scores))
    lines = [
        "## Scores",
        "",
        "Mean ± standard error over the documents of the split.",
        "",
        f"| model | split | {' | '.join(map(_escaped, names))} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for row in scores:
        cells = [_cell(*row.scores[name]) if name in row.scores else "" for name in names]
        lines.append(f"| {_escaped(row.name)} | {row.split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is in a table."""
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", text)


def _on_top(source: SourceFacts) -> str:
    return "" if source.adapter is None else f" with the adapter {_escaped(source.adapter)}"


def _cell(mean: float, stderr: float | None) -> str:
    return f"{mean:.4f}" if stderr is None else f"{mean:.4f} ± {stderr:.4f}"


def _source_table(sources: Sequence[SourceFacts]) -> str:
    lines = ["## Sources", "", "| alias | model | licence | content hash |", "|---|---|---|---|"]
    lines += [
        f"| {_escaped(source.alias)} | {_escaped(source.model)}{_on_top(source)} "
        f"| {_escaped(source.license or 'not declared')} "
        f"| `{source.content_hash[:16]}` |"
        for source in sources
    ]
    return "\n".join(lines)
