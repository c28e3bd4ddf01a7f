from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import StateError, StorageError
from evomerge.fitness.types import Evaluation
from evomerge.run.scores import ScoreStore, decode_scores, encode_scores

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
evaluations = st.builds(
    Evaluation,
    split=st.sampled_from(["search", "validation", "test"]),
    samples=st.dictionaries(names, hnp.arrays(np.float64, st.integers(0, 5)), max_size=3),
    documents=st.dictionaries(names, st.lists(names, max_size=3).map(tuple), max_size=3),
    facts=st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    seconds=st.just({"score": 1.5}),
    infeasible=st.none() | st.text(st.characters(codec="utf-8")),
)


def example() -> Evaluation:
    return Evaluation(
        split="search",
        samples={"sums.exact_match": np.array([0.0, 1.0, 0.1]), "ja.f1": np.array([0.5])},
        documents={"sums": ("a", "b", "c"), "ja": ("d",)},
        facts={"parameters": 3.0},
        seconds={"score": 1.0},
    )


@given(evaluation=evaluations)
@settings(max_examples=60, deadline=None)
def test_scores_are_read_back_bit_for_bit_without_their_seconds(evaluation: Evaluation) -> None:
    read = decode_scores(encode_scores(evaluation))
    assert {name: array.tobytes() for name, array in read.samples.items()} == {
        name: array.tobytes() for name, array in evaluation.samples.items()
    }
    assert all(array.dtype == np.float64 for array in read.samples.values())
    assert (read.split, read.infeasible, read.seconds) == (evaluation.split, evaluation.infeasible, {})
    assert (dict(read.documents), dict(read.facts)) == (dict(evaluation.documents), dict(evaluation.facts))


@given(evaluation=evaluations)
@settings(max_examples=30, deadline=None)
def test_equal_content_gives_equal_bytes_whatever_the_order_of_keys_and_the_seconds(
    evaluation: Evaluation,
) -> None:
    turned = Evaluation(
        split=evaluation.split,
        samples=dict(reversed(evaluation.samples.items())),
        documents=dict(reversed(evaluation.documents.items())),
        facts=dict(reversed(evaluation.facts.items())),
        infeasible=evaluation.infeasible,
    )
    assert encode_scores(turned) == encode_scores(evaluation)


def test_a_file_is_named_by_its_sha256_and_equal_scores_share_it(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    relative = store.write(example())
    assert store.write(example()) == relative
    [path] = (tmp_path / "scores").iterdir()
    assert relative == f"scores/{path.name}"
    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["cut", "flipped", "emptied"])
def test_a_changed_file_is_an_error_and_writing_again_mends_it(tmp_path: Path, change: str) -> None:
    store = ScoreStore(tmp_path)
    relative = store.write(example())
    path = tmp_path / relative
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "emptied": b""}[change])
    with pytest.raises(StateError, match="changed after it was written"):
        store.read(relative)
    assert store.write(example()) == relative
    assert store.read(relative).facts == {"parameters": 3.0}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    relative = store.write(example())
    (tmp_path / relative).unlink()
    with pytest.raises(StateError, match="missing"):
        store.read(relative)


def test_a_file_that_is_no_evaluation_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    data = b"no safetensors"
    relative = f"scores/{hashlib.sha256(data).hexdigest()}.safetensors"
    (tmp_path / relative).write_bytes(data)
    with pytest.raises(StateError, match="a score file was expected"):
        ScoreStore(tmp_path).read(relative)


@pytest.mark.parametrize(
    "relative",
    ["../secret", "/etc/passwd", "scores/../../x", "scores/x.safetensors", "", f"scores/{'a' * 64}.pkl"],
)
def test_a_path_that_is_not_a_score_file_of_the_run_is_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(StateError, match="not the path of a score file"):
        ScoreStore(tmp_path).read(relative)


def test_lazy_samples_are_read_at_the_first_look(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    relative = store.write(example())
    samples = store.samples(relative)
    gone = store.samples(f"scores/{'0' * 64}.safetensors")
    assert sorted(samples) == ["ja.f1", "sums.exact_match"]
    assert len(samples) == 2
    assert samples["ja.f1"].tolist() == [0.5]
    with pytest.raises(StateError, match="missing"):
        len(gone)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        ScoreStore(tmp_path).write(example())
    assert list((tmp_path / "scores").iterdir()) == []


def test_a_leftover_of_a_killed_writer_does_not_matter(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    name = Path(store.write(example())).name
    (tmp_path / "scores" / name).unlink()
    (tmp_path / "scores" / f".{name}.tmp").write_bytes(b"half")
    store.read(store.write(example()))
    assert [path.name for path in (tmp_path / "scores").iterdir()] == [name]


def test_scores_are_written_without_torch() -> None:
    code = "import sys, evomerge.run.scores as s, evomerge.fitness.types as t; "
    code += "s.decode_scores(s.encode_scores(t.Evaluation('search'))); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
