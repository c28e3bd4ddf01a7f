"""The page about parameter spaces: what it shows is a space."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evomerge.documents import parse_yaml
from evomerge.recipe import SourceConfig
from evomerge.spaces import SpaceConfig, create_space

PAGE = Path(__file__).parents[2] / "docs" / "parameter_space.md"
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("text", SNIPPETS)
def test_every_space_of_the_page_works(text: str) -> None:
    space = create_space(
        parse_yaml(text).parse(SpaceConfig),
        sources={alias: SourceConfig(model=alias) for alias in ("base", "math", "ja")},
        base="base",
        num_layers=8,
    )

    assert space.encode(space.decode(space.start)) == space.start


def test_the_page_shows_some() -> None:
    assert len(SNIPPETS) == 5
