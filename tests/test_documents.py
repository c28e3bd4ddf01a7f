"""YAML documents: plain data only, and errors that point at the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.documents import StrictModel, did_you_mean, dump_yaml, parse_yaml, read_yaml
from evomerge.errors import ConfigError


class Inner(StrictModel):
    layers: int = 1
    share: float = 0.5


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()


def test_an_unknown_key_is_an_error_with_line_path_and_suggestion() -> None:
    document = parse_yaml("name: a\ninner:\n  layer: 3\n", "search.yaml")
    with pytest.raises(ConfigError) as error:
        document.parse(Outer)
    assert str(error.value) == "search.yaml:3: inner.layer: unknown key 'layer'; did you mean 'layers'?"


def test_an_unknown_key_inside_a_list_is_found() -> None:
    document = parse_yaml("name: a\nitems:\n  - layers: 1\n  - layers: 2\n    shar: 1\n", "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml:5: items\[1\]\.shar: unknown key 'shar'; did you mean 'share'"):
        document.parse(Outer)


def test_a_wrong_type_says_what_was_expected_and_what_stood_there() -> None:
    document = parse_yaml("name: a\ninner: {layers: many}\n", "x.yaml")
    with pytest.raises(ConfigError, match=r"x\.yaml:2: inner\.layers: .*integer.*got 'many'"):
        document.parse(Outer)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml:1: name: this key is required"):
        parse_yaml("inner: {}\n", "x.yaml").parse(Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "stands twice"),
        ("a: [1\n", "not plain YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "not plain YAML"),
        ("? [1, 2]\n: 3\n", "not plain YAML|plain word"),
    ],
)
def test_anything_but_plain_data_is_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "x.yaml")


def test_a_scalar_is_not_a_document() -> None:
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse_yaml("3", "x.yaml").parse(Outer)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+2", -250.0), (".5", 0.5)])
def test_exponents_are_numbers(text: str, value: float) -> None:
    assert parse_yaml(f"a: {text}").data == {"a": value}


def test_a_revision_or_version_stays_text_or_number_as_yaml_says() -> None:
    assert parse_yaml("a: abc123\nb: 12\nc: 1e5a").data == {"a": "abc123", "b": 12, "c": "1e5a"}


def test_missing_and_binary_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_dumped_data_reads_back() -> None:
    data = {"b": [1, 2.5, "x"], "a": {"c": None, "d": True}}
    assert parse_yaml(dump_yaml(data)).data == data


def test_did_you_mean_lists_what_is_known_when_nothing_is_near() -> None:
    assert did_you_mean("layer", ["layers", "name"]) == "; did you mean 'layers'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"
    assert did_you_mean("x", []) == ""
