"""Models in another vocabulary, row by row, held against NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.checkpoints import AlignedModel, ModelSource, align, open_checkpoint, read_vocabulary
from evomerge.errors import RecipeError, SourceError
from evomerge.recipe import TokenizerConfig
from evomerge.testing.checkpoints import tiny_llama_config, tiny_llama_tensors, word_tokenizer, write_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
A = ["<unk>", "<s>", "</s>", "x", "y", "z"]
B = ["<unk>", "y", "<s>", "q", "</s>", "z", "r"]
C = ["<unk>", "<s>", "</s>", "z", "q"]


def write(
    folder: Path,
    tokens: Sequence[str],
    seed: int = 0,
    *,
    rows: int | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    **keys: Any,
) -> Path:
    """Write a model of these tokens, whose first ids are their places; it may have rows beyond."""
    config = tiny_llama_config(vocab=rows or len(tokens), tied=tied, layers=1)
    tensors = tiny_llama_tensors(config, seed, dtype)
    extra = keys.pop("tensors", {})
    return write_checkpoint(folder, {**config, **keys}, {**tensors, **extra}, tokenizer=word_tokenizer(tokens))


def opened(tmp_path: Path, **vocabularies: Sequence[str]) -> dict[str, ModelSource]:
    return {
        alias: open_checkpoint(write(tmp_path / alias, tokens, seed))
        for seed, (alias, tokens) in enumerate(vocabularies.items())
    }


def rule(**keys: Any) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"from" if key == "take" else key: value for key, value in keys.items()})


def array(model: ModelSource, name: str) -> NDArray[np.float64]:
    return model.tensor(name).double().numpy()


def by_token(model: ModelSource, name: str) -> dict[str, NDArray[np.float64]]:
    tokens = read_vocabulary(model.folder) or {}
    matrix = array(model, name)
    return {token: matrix[index] for token, index in tokens.items() if index < len(matrix)}


def expected(
    models: Mapping[str, ModelSource], target: Sequence[str], alias: str, name: str, default: Any
) -> NDArray[np.float64]:
    own = by_token(models[alias], name)
    return np.stack([own[token] if token in own else default(token) for token in target])


class TestRows:
    @pytest.mark.parametrize("name", [EMBEDDING, HEAD])
    def test_of_a_union_are_ones_own_or_the_mean_of_the_owners(self, tmp_path: Path, name: str) -> None:
        models = opened(tmp_path, a=A, b=B, c=C)
        target = [*A, "q", "r"]
        rows = {alias: by_token(model, name) for alias, model in models.items()}

        def mean(token: str) -> NDArray[np.float64]:
            return np.mean([found[token] for found in rows.values() if token in found], axis=0)

        views = align(models, rule(union=["a", "b"]), "a")
        for alias, view in views.items():
            assert read_vocabulary(view.folder) == {token: index for index, token in enumerate(target)}
            assert view.info(name).shape == (len(target), 16)
            np.testing.assert_allclose(array(view, name), expected(models, target, alias, name, mean), atol=1e-7)

    def test_of_missing_tokens_may_be_the_bases_or_zero(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=B, c=C)
        of_a, of_b = (by_token(models[alias], EMBEDDING) for alias in "ab")

        found = align(models, rule(take="a", missing="base"), "b")["c"]
        default = lambda token: of_b[token] if token in of_b else of_a[token]  # noqa: E731
        np.testing.assert_array_equal(array(found, EMBEDDING), expected(models, A, "c", EMBEDDING, default))
        found = align(models, rule(take="a", missing="zero"), "b")["c"]
        zero = lambda _: np.zeros(16)  # noqa: E731
        np.testing.assert_array_equal(array(found, EMBEDDING), expected(models, A, "c", EMBEDDING, zero))

    def test_of_single_tokens_follow_their_rule(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=B)
        tokens = {
            "q": {"from": "a", "token": "x"},
            "r": {"zero": True},
            "y": {"from": "b", "everywhere": True},
            "z": {"everywhere": True},
            "new": {"from": "b", "token": 3},
        }
        of_a, of_b = (by_token(models[alias], EMBEDDING) for alias in "ab")
        views = align(models, rule(union=["a", "b"], tokens=tokens), None)
        rows = {alias: by_token(view, EMBEDDING) for alias, view in views.items()}

        np.testing.assert_array_equal(rows["a"]["q"], of_a["x"])
        np.testing.assert_array_equal(rows["b"]["q"], of_b["q"])
        np.testing.assert_array_equal(rows["a"]["r"], np.zeros(16))
        for alias in "ab":
            np.testing.assert_array_equal(rows[alias]["y"], of_b["y"])
            np.testing.assert_allclose(rows[alias]["z"], (of_a["z"] + of_b["z"]) / 2, atol=1e-7)
            np.testing.assert_array_equal(rows[alias]["new"], of_b["q"])

    def test_that_stand_for_no_token_are_kept_or_the_mean(self, tmp_path: Path) -> None:
        models = {
            "a": open_checkpoint(write(tmp_path / "a", A, rows=9)),
            "b": open_checkpoint(write(tmp_path / "b", B, 1)),
        }
        views = align(models, rule(take="a"), None)
        assert views["a"] is models["a"]
        found = array(views["b"], EMBEDDING)
        assert found.shape == (9, 16)
        np.testing.assert_allclose(found[6:], np.tile(found[:6].mean(axis=0), (3, 1)), atol=1e-7)

        padded = array(align(models, rule(take="a", pad_to_multiple_of=8), None)["a"], EMBEDDING)
        np.testing.assert_array_equal(padded, array(models["a"], EMBEDDING)[:8])
        wider = array(align(models, rule(take="a", pad_to_multiple_of=12), None)["a"], EMBEDDING)
        np.testing.assert_array_equal(wider[:9], array(models["a"], EMBEDDING))
        np.testing.assert_allclose(wider[9:], np.tile(wider[:6].mean(axis=0), (3, 1)), atol=1e-7)

    def test_new_tokens_take_rows_of_the_padding(self, tmp_path: Path) -> None:
        models = {
            "a": open_checkpoint(write(tmp_path / "a", A, rows=9)),
            "b": open_checkpoint(write(tmp_path / "b", B, 1)),
        }
        view = align(models, rule(union=["a", "b"]), None)["a"]
        np.testing.assert_array_equal(array(view, EMBEDDING)[6:8], array(models["b"], EMBEDDING)[[3, 6]])
        np.testing.assert_array_equal(array(view, EMBEDDING)[8], array(models["a"], EMBEDDING)[8])

    @settings(max_examples=15, deadline=None)
    @given(order=st.permutations(range(len(A))))
    def test_of_a_permuted_vocabulary_are_those_of_the_unpermuted_one(
        self, tmp_path_factory: pytest.TempPathFactory, order: list[int]
    ) -> None:
        folder = tmp_path_factory.mktemp("permuted")
        plain = open_checkpoint(write(folder / "a", A))
        config = dict(plain.config)
        tensors = {name: plain.tensor(name) for name in plain.names()}
        tensors |= {name: tensors[name][torch.tensor(order)] for name in (EMBEDDING, HEAD)}
        tokens = word_tokenizer([A[index] for index in order])
        other = open_checkpoint(write_checkpoint(folder / "b", config, tensors, tokenizer=tokens))
        view = align({"a": plain, "b": other}, rule(take="a"), None)["b"]

        assert view.names() == plain.names()
        for name in plain.names():
            assert torch.equal(view.tensor(name), plain.tensor(name))
        assert isinstance(view, AlignedModel) == (order != sorted(order))


class TestTensors:
    def test_a_tied_head_stays_tied(self, tmp_path: Path) -> None:
        models = {
            alias: open_checkpoint(write(tmp_path / alias, tokens, seed, tied=True))
            for seed, (alias, tokens) in enumerate({"a": A, "b": B}.items())
        }
        view = align(models, rule(take="a"), None)["b"]
        assert view.tied == {HEAD: EMBEDDING}
        assert HEAD not in view.names()

    def test_the_bias_of_a_head_moves_and_no_other_vector(self, tmp_path: Path) -> None:
        """Even where the hidden size is the number of tokens."""
        words = [f"w{index}" for index in range(16)]
        bias = {"lm_head.bias": torch.arange(16.0)}
        models = {
            alias: open_checkpoint(write(tmp_path / alias, order, tensors=bias))
            for alias, order in {"a": words, "b": words[::-1]}.items()
        }
        view = align(models, rule(take="a"), None)["b"]
        assert view.tensor("lm_head.bias").tolist() == list(range(15, -1, -1))
        for name in ("model.norm.weight", "model.layers.0.self_attn.q_proj.weight"):
            assert torch.equal(view.tensor(name), models["b"].tensor(name))

    def test_rows_that_are_moved_keep_their_type_and_means_are_not_rounded(self, tmp_path: Path) -> None:
        half = torch.bfloat16
        models: dict[str, ModelSource] = {
            alias: open_checkpoint(write(tmp_path / alias, tokens, seed, dtype=half))
            for seed, (alias, tokens) in enumerate({"a": A, "b": B, "c": C}.items())
        }
        moved = align(models, rule(take="a"), None)["b"]  # `x` is a copy
        assert moved.info(EMBEDDING).dtype == moved.tensor(EMBEDDING).dtype == half
        mean = align(models, rule(union=["a", "b"]), None)["c"]  # `y` is the mean of two
        assert mean.info(EMBEDDING).dtype == mean.tensor(EMBEDDING).dtype == torch.float32

    def test_the_configuration_has_the_ids_of_the_vocabulary(self, tmp_path: Path) -> None:
        a = write(tmp_path / "a", A, bos_token_id=1, eos_token_id=[2, 5])
        b = write(tmp_path / "b", B, 1, bos_token_id=2, eos_token_id=4, pad_token_id=1, sep_token_id=3)
        models = {"a": open_checkpoint(a), "b": open_checkpoint(b)}
        found = align(models, rule(take="a"), None)["b"].config

        assert (found["vocab_size"], found["bos_token_id"], found["eos_token_id"]) == (6, 1, [2, 5])
        assert (found["pad_token_id"], found["sep_token_id"]) == (4, None)  # `y`, and `q`, which is no token any more
        assert models["b"].config["vocab_size"] == 7


class TestIdentity:
    def test_models_that_need_no_alignment_stay_as_they_are(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=A)
        assert all(align(models, rule(union=["a", "b"]), "a")[alias] is model for alias, model in models.items())

    def test_a_content_hash_says_where_rows_come_from(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=B)
        rules = [
            rule(take="a"),
            rule(take="a", missing="zero"),
            rule(union=["a", "b"]),
            rule(union=["b", "a"]),
            rule(union=["a", "b"], pad_to_multiple_of=16),
        ]
        hashes = [align(models, one, None)["b"].content_hash for one in rules]
        again = [align(models, one, None)["b"].content_hash for one in rules]
        assert hashes == again
        assert len(set(hashes)) == len(rules)
        write(tmp_path / "c", A, 7)
        changed = {"a": open_checkpoint(tmp_path / "c"), "b": models["b"]}
        assert align(changed, rule(take="a"), None)["b"].content_hash != hashes[0]  # `x` is taken from there


class TestBadInput:
    @pytest.mark.parametrize(
        ("tokens", "text"),
        [
            ({"new": {}, "neu": {}}, r"no source has a row for 'new', 'neu'; say under `tokenizer\.tokens`"),
            ({"x": {"from": "b"}}, r"tokenizer\.tokens\.x\.from: 'b' has no row for the token 'x'"),
            ({"x": {"from": "b", "token": "v"}}, r"tokenizer\.tokens\.x\.token: 'b' has no row for the token 'v'"),
            ({"x": {"from": "b", "token": 7}}, r"tokenizer\.tokens\.x\.token: 'b' has rows from 0 to 6, got 7"),
        ],
    )
    def test_tokens_without_a_row_are_named(self, tmp_path: Path, tokens: dict[str, Any], text: str) -> None:
        with pytest.raises(RecipeError, match=text):
            align(opened(tmp_path, a=A, b=B), rule(union=["a", "b"], tokens=tokens), None)

    def test_a_token_that_is_beyond_the_rows_of_all_is_named(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=B)
        (models["a"].folder / "tokenizer.json").write_text(json.dumps(word_tokenizer([*A, "<pad>"])))
        with pytest.raises(RecipeError, match="no source has a row for '<pad>'"):
            align(models, rule(take="a"), None)
        found = align(models, rule(take="a", tokens={"<pad>": {"from": "b", "token": "</s>"}}), None)["a"]
        np.testing.assert_array_equal(array(found, EMBEDDING)[6], array(models["b"], EMBEDDING)[4])

    def test_a_source_without_tokenizer_has_the_kept_ones_rows(self, tmp_path: Path) -> None:
        models = opened(tmp_path, a=A, b=A, c=B)
        (models["b"].folder / "tokenizer.json").unlink()
        assert align(models, rule(take="a"), None)["b"] is models["b"]
        with pytest.raises(SourceError, match=r"source 'b': .* has no tokenizer\.json, .*AutoTokenizer"):
            align(models, rule(take="c"), None)
