from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digests are kept in a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EVOMERGE_CACHE", str(folder))
    return folder
