"""Reading a search file: overrides, ready spaces, and paths that hold wherever the run continues."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.catalog import FOLDERS, catalog_root, find_document
from evomerge.documents import Document, Key, parse_yaml, read_yaml
from evomerge.errors import ConfigError, NotBuiltError
from evomerge.run.config import RunConfig
from evomerge.spaces import read_space

_NAMES_ELSEWHERE = re.compile(r"zoo:|[\w.-]+/[\w.-]+$")
"""Embedded models and hub ids: what a model's name may be where there is no such folder."""

_KEY_PATH = re.compile(r"([a-z_]+(?:\.[\w-]+)*): (?:([\w-]+): )?")
"""How an error about a key begins: `search.searcher: `, `search.options: population: `."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a search file into its resolved form.

    Ready spaces (`space: {from: ...}`) are filled in; local models and suites become absolute paths, so that the
    result means the same from any folder. Catalogue names and hub ids stay as they are.

    Args:
        path: the search file.
        overrides: `a.b=value` texts, each value read as YAML.

    Raises:
        ConfigError: with file, line and key path of the first fault.
    """
    return resolve_config(read_yaml(path), path.resolve().parent, overrides)


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Let errors that begin with a key of the search file name file and line too.

    What only shows once sources and methods are known (a parameter that a method does not have, an option of a
    searcher) is checked after the file was read; such an error begins with the key's path.
    """
    try:
        yield
    except (ConfigError, NotBuiltError) as error:
        line = _line_of_key(path, str(error))
        if line is None:
            raise
        raise type(error)(f"{path}:{line}: {error}") from None


def _line_of_key(path: Path, text: str) -> int | None:
    """Return the line of the key whose path a text begins with, or the line of what should hold it."""
    found = _KEY_PATH.match(text)
    if found is None:
        return None
    lines = read_yaml(path).lines
    keys: Key = tuple(key for part in found.groups("") for key in part.split(".") if key)
    while keys and keys not in lines:
        keys = keys[:-1]
    return lines[keys] if keys else None


def resolve_config(document: Document, base_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Do what `load_config` does for a document that is read already; relative paths start at `base_dir`."""
    if not isinstance(document.data, Mapping):
        raise document.error((), "a search file is a mapping of keys (sources, space, fitness, ...)")
    data = copy.deepcopy(dict(document.data))
    apply_overrides(data, overrides)
    if isinstance(data.get("space"), Mapping):
        data["space"] = read_space(data["space"], lambda name: find_document(name, base_dir))
    _absolute_paths(data, base_dir)
    return replace(document, data=data).parse(RunConfig)


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Write `a.b=value` texts into nested mappings, in place.

    Raises:
        ConfigError: for a text without `=`, or a path through something that is not a mapping.
    """
    for text in overrides:
        path, sign, value = text.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ConfigError(f"--set {text}: expected KEY.PATH=VALUE, for instance budget.evaluations=200")
        target = data
        for key in keys[:-1]:
            inner = target.get(key)
            inner = {} if inner is None else inner
            if not isinstance(inner, Mapping):
                raise ConfigError(f"--set {text}: {key!r} holds a value, not keys")
            target[key] = dict(inner)
            target = target[key]
        target[keys[-1]] = parse_yaml(value, f"--set {text}").data


def _absolute_paths(data: dict[str, Any], base_dir: Path) -> None:
    """Make the local paths of a search file's mapping absolute, in place; leave what is malformed to validation."""
    sources = data.get("sources")
    if isinstance(sources, Mapping):
        data["sources"] = {alias: absolute_source(source, base_dir) for alias, source in sources.items()}
    fitness = data.get("fitness")
    if isinstance(fitness, Mapping) and isinstance(fitness.get("suite"), str):
        found = find_document(fitness["suite"], base_dir)
        in_catalog = fitness["suite"].split("/")[0] in FOLDERS and found == catalog_root() / fitness["suite"]
        data["fitness"] = {**fitness, "suite": fitness["suite"] if in_catalog else str(found)}


def absolute_source(source: Any, base_dir: Path) -> Any:
    """Return a source's mapping with its local paths made absolute, those of recipes within it too."""
    if not isinstance(source, Mapping):
        return source
    return {
        key: _absolute_model(value, base_dir) if key in ("model", "adapter", "statistics") else value
        for key, value in source.items()
    }


def _absolute_model(model: Any, base_dir: Path) -> Any:
    """Return a model as it is named from any folder: a nested recipe's sources too."""
    if isinstance(model, Mapping) and isinstance(model.get("sources"), Mapping):
        inner = {alias: absolute_source(source, base_dir) for alias, source in model["sources"].items()}
        return {**model, "sources": inner}
    if not isinstance(model, str):
        return model
    try:
        path = (base_dir / Path(model).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):
        return model  # a null byte, an unknown user's home: refused where models are opened
    return str(path) if path.exists() or not _NAMES_ELSEWHERE.match(model) else model
