from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digests are kept in a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EVOMERGE_CACHE", str(folder))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with three siblings: `base`, `math` and `ja`."""
    for seed, name in enumerate(("base", "math", "ja")):
        write_tiny_llama(tmp_path / "models" / name, seed)
    return tmp_path / "models"


class MakeRecipe:
    """Builds recipes over the three siblings; keys given replace the usual ones."""

    def __call__(self, blend: dict[str, Any] | None = None, **keys: Any) -> Recipe:
        data: dict[str, Any] = {
            "recipe": 1,
            "sources": {name: {"model": name} for name in ("base", "math", "ja")},
            "base": "base",
            "dtype": "float32",
            "blend": blend or {"method": "task_arithmetic", "weight": {"math": 0.7, "ja": 0.4}},
            **keys,
        }
        return Recipe.from_mapping({key: value for key, value in data.items() if value is not None})


@pytest.fixture
def make_recipe() -> MakeRecipe:
    return MakeRecipe()
