"""The search in the documentation runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "natural_niches.md"


def test_the_example_on_digits_runs_and_beats_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code.count("evaluations=1000") == 1
    names: dict[str, object] = {}
    exec(code.replace("evaluations=1000", "evaluations=60"), names)  # noqa: S102
    printed = re.search(r"tensor\((0\.\d+)\)", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) > 0.55
    lines = [line for line in code.split("search = ")[1].splitlines() if line.strip()]
    assert len(lines) < 20
