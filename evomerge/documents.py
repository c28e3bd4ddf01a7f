"""YAML documents as data: safe, strict, and with errors that name file, line and key path.

Everything that a person writes (search file, recipe, suite) is read here. YAML is read by a safe loader without
tags, duplicate keys are errors, and `1e-3` is a number (YAML 1.1 reads it as text).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from evomerge.errors import ConfigError

Key = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, else the list of known words, else nothing."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words else ""


class StrictModel(BaseModel):
    """Base of every document model: frozen, and an unknown key is an error with a suggestion."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in known:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}{hint}",
                        {"key": repr(key), "raw_key": key, "hint": did_you_mean(str(key), known)},
                    )
        return data


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys and reads `1e-3` as a float."""


_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf|INF)$|^\.nan$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int, float, bool)):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _lines(node: yaml.Node, path: Key, out: dict[Key, int]) -> None:
    """Record the 1-based line of every key path below `node`."""
    out.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*path, str(key_node.value))
            out[key] = key_node.start_mark.line + 1
            _lines(value_node, key, out)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _lines(item, (*path, index), out)


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document as plain data, with the line of every key path."""

    data: Any
    name: str
    """What errors call it: the file's path, or a word such as "recipe"."""
    lines: Mapping[Key, int]

    def where(self, path: Key) -> str:
        """Return `file:line: a.b[0]` for a key path (the nearest known parent's line)."""
        probe = tuple(str(part) if isinstance(part, str) else part for part in path)
        while probe and probe not in self.lines:
            probe = probe[:-1]
        line = self.lines.get(probe)
        place = f"{self.name}:{line}" if line is not None and self.name else self.name
        dotted = dotted_path(path)
        return ": ".join(part for part in (place, dotted) if part)

    def error(self, path: Key, text: str) -> ConfigError:
        """Build a `ConfigError` that points at a key path of this document."""
        return ConfigError(f"{self.where(path)}: {text}")

    def parse(self, model: type[ModelT]) -> ModelT:
        """Validate the document into `model`.

        Raises:
            ConfigError: with the first fault's file, line and key path.
        """
        if not isinstance(self.data, Mapping):
            raise self.error((), f"expected a mapping of keys, got {_kind(self.data)}")
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            raise self._first_fault(error) from None

    def _first_fault(self, error: ValidationError) -> ConfigError:
        faults = error.errors(include_url=False)
        # A union reports one fault a branch: the deepest one is about what the user meant.
        fault = max(faults, key=lambda item: (item["type"] == "unknown_key", len(item["loc"])))
        path = self._document_path(fault["loc"], may_be_absent=fault["type"] in {"missing", "value_error"})
        message = fault["msg"]
        if fault["type"] == "unknown_key":
            path = (*path, fault["ctx"]["raw_key"])
        elif fault["type"] == "missing":
            message = "this key is required"
        elif fault["type"] == "value_error":
            message = str(fault["ctx"]["error"])
        else:
            message = f"{message[0].lower()}{message[1:]}, got {_kind(fault.get('input'))}"
        return self.error(path, message)

    def _document_path(self, loc: Key, *, may_be_absent: bool) -> Key:
        """Drop the tags that pydantic adds for the branches of a union; the last key may not be there yet."""
        path: Key = ()
        value = self.data
        for index, part in enumerate(loc):
            in_list = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
            if in_list or (isinstance(value, Mapping) and part in value):
                value = value[part]
            else:
                word = str(part).isidentifier() and str(part).islower()
                if not (may_be_absent and word and index == len(loc) - 1):
                    continue
            path = (*path, part)
        return path


def dotted_path(path: Key) -> str:
    """Return `a.b[0].c` for `("a", "b", 0, "c")`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def first_difference(one: Any, other: Any, path: tuple[str | int, ...] = ()) -> tuple[str | int, ...] | None:
    """Return the key path where two plain values first differ, in the first one's order, or None."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return (*path, key)
            found = first_difference(one[key], other[key], (*path, key))
            if found is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            found = first_difference(left, right, (*path, index))
            if found is not None:
                return found
        return None
    return None if type(one) is type(other) and one == other else path


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_yaml(text: str, name: str = "document") -> Document:
    """Read YAML text.

    Raises:
        ConfigError: for anything that is not plain YAML data, with the line.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{place}: this is not plain YAML data: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: this is not plain YAML data: {str(error).splitlines()[0]}") from None
    lines: dict[Key, int] = {}
    if node is not None:
        _lines(node, (), lines)
    return Document(data=data, name=name, lines=lines)


def read_yaml(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: when the file is missing, unreadable, not UTF-8, or not plain YAML data.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is not UTF-8 text; a YAML file was expected") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    return parse_yaml(text, str(path))


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes the words which `_Loader` would read as numbers, and writes no anchors."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML, keys in the order given."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
