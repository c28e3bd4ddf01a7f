"""Sources on a hub, held to the commits that their names mean now: names move, and machines ask at different times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from evomerge.checkpoints.resolve import Kind, find_local, resolve_adapter, resolve_model
from evomerge.errors import SourceError
from evomerge.recipe import Recipe, SourceConfig

_COMMIT = re.compile("[0-9a-f]{40}")


def hub_commits(sources: Mapping[str, SourceConfig], base_dir: Path) -> dict[str, str]:
    """Return the commits that the names of sources on a hub mean, `org/name` or `org/name@revision` -> 40 hex digits.

    Each name is asked for once, and what it means is downloaded. Sources that name a commit themselves, and those that
    are on this machine, are left out; those of nested recipes are not.

    Args:
        sources: by alias.
        base_dir: where relative folders start.

    Raises:
        SourceError: when there is no such source, or it cannot be downloaded.
    """
    commits: dict[str, str] = {}
    for alias, source in sources.items():
        if isinstance(source.model, Recipe):
            commits |= hub_commits(source.model.sources, base_dir)
        try:
            for kind, word, revision in _words(source):
                if _key(word, revision) not in commits and not _is_commit(revision):
                    commits |= _commit(kind, word, revision, base_dir)
        except SourceError as error:
            raise SourceError(f"sources.{alias}: {error}") from None
    return commits


def pinned(sources: Mapping[str, SourceConfig], commits: Mapping[str, str]) -> dict[str, SourceConfig]:
    """Return sources with the commits that `hub_commits` found in place of names; nested recipes' sources too."""

    def commit(word: str, revision: str | None) -> str | None:
        return commits.get(_key(word, revision), revision)

    def pin(source: SourceConfig) -> SourceConfig:
        update: dict[str, object] = {}
        if isinstance(source.model, Recipe):
            inner = pinned(source.model.sources, commits)
            update["model"] = source.model.model_copy(update={"sources": inner})
        else:
            update["revision"] = commit(source.model, source.revision)
        if source.adapter is not None:
            update["adapter_revision"] = commit(source.adapter, source.adapter_revision)
        return source.model_copy(update=update)

    return {alias: pin(source) for alias, source in sources.items()}


def _words(source: SourceConfig) -> list[tuple[Kind, str, str | None]]:
    """Return kind, name and revision of the model and of the adapter, as far as there are any."""
    words: list[tuple[Kind, str, str | None]] = []
    if isinstance(source.model, str):
        words.append(("model", source.model, source.revision))
    if source.adapter is not None:
        words.append(("adapter", source.adapter, source.adapter_revision))
    return words


def _commit(kind: Kind, word: str, revision: str | None, base_dir: Path) -> dict[str, str]:
    if find_local(kind, word, revision, base_dir) is not None:
        return {}
    resolve = resolve_model if kind == "model" else resolve_adapter
    name = resolve(word, revision, base_dir).name  # the hub's cache has a folder for each commit
    return {_key(word, revision): name} if _is_commit(name) else {}


def _key(word: str, revision: str | None) -> str:
    return word if revision is None else f"{word}@{revision}"


def _is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None
