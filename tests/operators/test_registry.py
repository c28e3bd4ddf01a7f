"""Methods as data: found by name, completed against a recipe, importable without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from evomerge.operators import get, load, names, specs
from evomerge.operators.reference import markdown

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


def test_metadata_loads_no_tensor_library() -> None:
    code = (
        "import sys, evomerge.operators as o, evomerge.operators.reference as r; r.markdown();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_follow_the_specs_and_every_kernel_loads() -> None:
    assert names() == tuple(spec.name for spec in specs())
    assert all(callable(load(spec)) for spec in specs())


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown merge method 'tie'; did you mean 'ties'\?"):
        get("tie")


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("ties", {"densety": 0.5}, "did you mean 'density'"),
        ("ties", {"density": 0.0}, r"must lie in \(0, 1\]"),
        ("ties", {"density": {"math": 1.5}}, r"must lie in \(0, 1\]"),
        ("ties", {"weight": float("nan")}, "finite"),
        ("ties", {"weight": {"maths": 1.0}}, "did you mean 'math'"),
        ("ties", {"scale": {"math": 1.0}}, "one value for all"),
        ("ties", {"normalize": 1}, "true or false"),
        ("ties", {"scope": "rows"}, "did you mean 'row'"),
        ("slerp", {}, "exactly 1 sources beside the base, got 2"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(method: str, settings: dict[str, float], text: str) -> None:
    with pytest.raises(RecipeError, match=text) as caught:
        get(method).complete(settings, ["math", "code"])
    assert "\n" not in str(caught.value)


def test_a_mapping_of_weights_gives_absent_sources_zero_and_other_parameters_their_default() -> None:
    params = get("dare_ties").complete({"weight": {"b": 2}, "density": {"a": 0.25}}, ["a", "b"])
    assert params["weight"] == (0.0, 2.0)
    assert params["density"] == (0.25, 0.5)


def test_the_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "run: python -m evomerge.operators.reference > docs/operators.md"
    )
