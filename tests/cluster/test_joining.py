from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cluster._joining import has_token, names_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_is_what_the_environment_names_and_an_empty_variable_names_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert not has_token()
    monkeypatch.setenv(name, "")
    assert not has_token()
    monkeypatch.setenv(name, "ab" * 24)
    assert names_token()
    assert has_token()


def test_a_token_in_the_home_folder_is_one_that_the_environment_does_not_name(home: Path) -> None:
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("ab" * 24)
    assert has_token()
    assert not names_token()
