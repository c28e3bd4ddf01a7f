"""United tokenizers, held against what the tokenizers library makes of the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.checkpoints.unions import united
from evomerge.errors import NotBuiltError, SourceError
from evomerge.testing.checkpoints import word_tokenizer

ENGLISH = ["the cat sat on the mat", "a cat and a hat", "the mat and the hat"] * 4
GERMAN = ["der Hund und die Katze", "der Mond und das Meer", "und der Hund"] * 4
ALL_ROWS = 10**6


def bpe(corpus: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, show_progress=False, special_tokens=["<s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def word_piece(corpus: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=60, show_progress=False, special_tokens=["[UNK]"])
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def unigram(corpus: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    unknown = {"special_tokens": ["<unk>"], "unk_token": "<unk>"}
    trainer = trainers.UnigramTrainer(vocab_size=40, show_progress=False, **unknown)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def words(corpus: Sequence[str]) -> Tokenizer:
    known = sorted({word for text in corpus for word in text.split()})
    return Tokenizer.from_str(json.dumps(word_tokenizer(["<unk>", *known])))


Make = Callable[[Sequence[str]], Tokenizer]
KINDS = pytest.mark.parametrize("make", [bpe, word_piece, unigram, words])


def save(tokenizer: Tokenizer, folder: Path, *special: str, **settings: object) -> Path:
    """Write a tokenizer with special tokens behind its vocabulary, which its model does not know."""
    tokenizer.add_special_tokens(list(special))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


@KINDS
def test_the_first_keeps_its_ids_and_the_others_tokens_follow(tmp_path: Path, make: Make) -> None:
    first = save(make(ENGLISH), tmp_path / "en", "<|im_start|>", "<pad>")
    other = save(make(GERMAN), tmp_path / "de", "<|tool|>", "<pad>")
    ours, theirs = read_vocabulary(first) or {}, read_vocabulary(other) or {}

    found = united(first, [(other, ALL_ROWS)], ["neu"])
    loaded = Tokenizer.from_str(json.dumps(found.document))

    assert loaded.get_vocab() == found.tokens
    assert {token: found.tokens[token] for token in ours} == ours
    assert found.tokens.keys() == {*ours, *theirs, "neu"}
    new = [token for token, _ in sorted(theirs.items(), key=lambda item: item[1]) if token not in ours]
    assert [found.tokens[token] for token in [*new, "neu"]] == list(range(len(ours), len(found.tokens)))
    assert loaded.encode("<|tool|>").tokens == ["<|tool|>"]
    assert loaded.decode(loaded.encode("<|tool|>").ids) == ""  # it is still special, and the new word is not
    assert loaded.decode([found.tokens["neu"]]).strip() == "neu"


def test_byte_pairs_are_merged_as_the_first_does(tmp_path: Path) -> None:
    """No merge leads to the other's tokens, and none of them is cut out of the middle of a word."""
    first, other = save(bpe(ENGLISH), tmp_path / "en"), save(bpe(GERMAN), tmp_path / "de")
    before = Tokenizer.from_file(str(first / "tokenizer.json"))
    after = Tokenizer.from_str(json.dumps(united(first, [(other, ALL_ROWS)]).document))

    for text in [*ENGLISH, "the hand and thunder", "a mathe"]:
        assert after.encode(text).ids == before.encode(text).ids
    foreign = after.token_to_id("Ġund")
    assert foreign is not None
    assert before.token_to_id("Ġund") is None
    assert after.decode([foreign]) == " und"


def test_whole_words_of_the_other_are_found(tmp_path: Path) -> None:
    first, other = save(words(ENGLISH), tmp_path / "en"), save(words(GERMAN), tmp_path / "de")
    after = Tokenizer.from_str(json.dumps(united(first, [(other, ALL_ROWS)]).document))
    assert after.encode("the Hund and Vogel").tokens == ["the", "Hund", "and", "<unk>"]


def test_tokens_without_a_row_are_no_tokens_of_the_other(tmp_path: Path) -> None:
    first, other = save(words(ENGLISH), tmp_path / "en"), save(words(GERMAN), tmp_path / "de", "<new>")
    theirs = read_vocabulary(other) or {}
    found = united(first, [(other, theirs["<new>"])])
    assert "<new>" not in found.tokens
    assert found.tokens.keys() >= theirs.keys() - {"<new>"}


def test_one_that_has_every_token_stays_as_it_is(tmp_path: Path) -> None:
    first, other = save(words([*ENGLISH, *GERMAN]), tmp_path / "both"), save(words(GERMAN), tmp_path / "de")
    assert united(first, [(other, ALL_ROWS)], ["cat"]).document is None


def test_files_are_those_of_the_first_but_for_the_vocabulary(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first = save(bpe(ENGLISH), tmp_path / "en", "<|end|>", bos_token="<|end|>", added_tokens_decoder={})  # noqa: S106
    (first / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|end|>")
    (first / "vocab.json").write_text("{}")
    (first / "generation_config.json").write_text('{"eos_token_id": 60}')
    other = save(bpe(GERMAN), tmp_path / "de", "<|tool|>")
    out = tmp_path / "out"
    out.mkdir()
    found = united(first, [(other, ALL_ROWS)])
    found.write(out, {"model_type": "llama", "vocab_size": found.num_ids})

    assert {path.name for path in out.iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
    }  # fmt: skip
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.get_vocab() == found.tokens
    assert loaded.bos_token == "<|end|>"  # noqa: S105
    assert loaded.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False) == "the cat<|end|>"
    assert loaded("the cat<|end|>")["input_ids"] == AutoTokenizer.from_pretrained(first)("the cat<|end|>")["input_ids"]


def test_a_unigram_model_takes_no_tokens_without_scores(tmp_path: Path) -> None:
    first, other = save(unigram(ENGLISH), tmp_path / "en"), save(words(GERMAN), tmp_path / "de")
    with pytest.raises(NotBuiltError, match=r"has a score for each token, and 'Hund' comes from one that has none"):
        united(first, [(other, ALL_ROWS)])


def test_what_the_library_cannot_read_is_refused(tmp_path: Path) -> None:
    first, other = save(words(ENGLISH), tmp_path / "en"), save(words(GERMAN), tmp_path / "de")
    data = json.loads((first / "tokenizer.json").read_text())
    (first / "tokenizer.json").write_text(json.dumps({**data, "pre_tokenizer": {"type": "Nothing"}}))
    with pytest.raises(SourceError, match=r"tokenizer\.json: tokens cannot be added to it"):
        united(first, [(other, ALL_ROWS)])
