from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from evomerge.recipe import Recipe
from evomerge.run.card import ScoreRow, SourceFacts, declared_license, model_card

RECIPE = 'recipe: 1\nsources:\n  base: {model: "zoo:base"}\nblend: {method: linear}\n'
HASH = "0123456789abcdef" * 4


def source(alias: str, model: str = "a model", license_: str | None = "apache-2.0") -> SourceFacts:
    return SourceFacts(alias, model, HASH, license_)


def card(*sources: SourceFacts, scores: tuple[ScoreRow, ...] = (), recipe: str = RECIPE) -> str:
    return model_card("merged", recipe, sources=sources or (source("base"),), lineage="Found by luck.", scores=scores)


def metadata(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded


def cells(text: str, first: str) -> list[str]:
    """Returns the cells of the table row that begins with `first`."""
    [row] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


def test_the_hub_reads_the_cards_metadata() -> None:
    data = ModelCard(card(source("base", "org/base-7b"))).data.to_dict()
    assert (data["library_name"], data["license"]) == ("transformers", "apache-2.0")
    assert "merge" in data["tags"]
    assert data["base_model"] == ["org/base-7b"]
    assert data["base_model_relation"] == "merge"


def test_only_models_of_the_hub_are_named_as_base_models() -> None:
    text = card(
        *(source(f"s{place}", model) for place, model in enumerate(("zoo:base", "./a/b", "folder", "/models/x")))
    )
    assert not metadata(text).keys() & {"base_model", "base_model_relation"}
    assert cells(text, "s0")[1] == "zoo:base"


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "llama3"), "other"),
        (("mit", None), None),
        ((None, None), None),
    ],
)
def test_the_card_claims_a_licence_only_where_every_source_declares_one(
    licenses: tuple[str | None, ...], expected: str | None
) -> None:
    text = card(*(source(f"s{place}", license_=name) for place, name in enumerate(licenses)))
    assert metadata(text).get("license") == expected
    assert [cells(text, f"s{place}")[2] for place in range(2)] == [name or "not declared" for name in licenses]


def test_scores_stand_with_their_standard_errors_row_by_row() -> None:
    rows = (
        ScoreRow("candidate 7", "test", {"sums.acc": (0.91234, 0.0123), "ja.acc": (0.5, None)}),
        ScoreRow("uniform", "test", {"sums.acc": (0.4, 0.02)}),
    )
    text = card(scores=rows)
    assert cells(text, "candidate 7") == ["candidate 7", "test", "0.9123 ± 0.0123", "0.5000"]
    assert cells(text, "uniform")[:3] == ["uniform", "test", "0.4000 ± 0.0200"]


def test_a_card_without_scores_has_no_score_table() -> None:
    assert "## Scores" not in card()


def test_names_cannot_break_a_table_or_add_markup() -> None:
    text = card(source("base", "a|b<script>"), scores=(ScoreRow("x|y", "test", {"<img>|*a*": (1.0, None)}),))
    body = text.split("---\n", 2)[2]
    assert r"\|" in body
    unescaped = body.replace(r"\<", "").replace(r"\>", "").replace(r"\|", "")
    assert "<" not in unescaped
    tables = [line for line in unescaped.splitlines() if line.startswith("|") and "---" not in line]
    assert {line.count("|") for line in tables if "test" in line or "split" in line} == {4}


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.rstrip()], ids=["with a last newline", "without"])
def test_the_recipe_in_the_card_is_the_recipe(recipe: str) -> None:
    text = card(recipe=recipe)
    block = text.split("```yaml\n")[1].split("```")[0]
    assert Recipe.from_yaml(block) == Recipe.from_yaml(RECIPE)
    assert "Found by luck." in text
    assert HASH[:16] in text


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# A model\n", "mit"),
        ("# A model without metadata\n", None),
        ("---\nlicense: [broken\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("", None),
        (None, None),
    ],
)
def test_a_declared_licence_is_read_from_the_metadata_of_the_readme(
    tmp_path: Path, readme: str | None, expected: str | None
) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert declared_license(tmp_path) == expected
