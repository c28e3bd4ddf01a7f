"""The embedded models are what they are said to be: loadable, honest about what they were trained on, and good."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.demo.evaluate import IGNORE, encode, exact_match
from evomerge.demo.skills import CROSS_DOMAIN, SKILLS, Item
from evomerge.demo.tasks import TASKS, documents, write_tasks
from evomerge.demo.tokenizer import EOS, VOCABULARY, build_tokenizer
from evomerge.demo.train import (
    BASE_VARIANTS,
    DIET,
    EXPERTS,
    BasePlan,
    ExpertPlan,
    train_base,
    train_expert,
)

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "evomerge" / "demo" / "models"
NAMES = ["base", *EXPERTS]


def shipped_documents(task: str) -> list[dict[str, str]]:
    text = (ROOT / "fitness" / "data" / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def as_items(task: str) -> list[Item]:
    return [Item(document["prompt"], document["answer"], "") for document in shipped_documents(task)]


@pytest.mark.parametrize("name", NAMES)
def test_each_folder_loads_alone_with_plain_transformers(name: str) -> None:
    """A model folder holds all that AutoModelForCausalLM and AutoTokenizer need, and answers a prompt."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)

    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size
    output = model.generate(
        **tokenizer(["37+48=", "<五二九一四は"], padding=True, return_tensors="pt"), max_new_tokens=8
    )
    assert output.shape[0] == 2


def test_the_models_share_their_shape_and_differ_in_their_weights() -> None:
    """Every expert can be merged with the base: same names and shapes, other values."""
    states = {name: AutoModelForCausalLM.from_pretrained(MODELS / name).state_dict() for name in NAMES}

    for name in EXPERTS:
        shapes = {key: value.shape for key, value in states[name].items()}
        assert shapes == {key: value.shape for key, value in states["base"].items()}
        assert any(not torch.equal(states[name][key], states["base"][key]) for key in shapes)


def test_the_models_are_small_and_only_safetensors() -> None:
    """The wheel stays light and nothing in it is a pickle."""
    files = [path for path in MODELS.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) < 9e6
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


@pytest.mark.parametrize("task", TASKS)
def test_the_tokenizer_round_trips_every_document(task: str) -> None:
    """Encoding and decoding gives back every prompt and answer, and no character is unknown."""
    tokenizer = build_tokenizer()

    for document in shipped_documents(task):
        text = document["prompt"] + document["answer"]
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize("task", TASKS)
def test_our_encoding_is_the_tokenizers(task: str) -> None:
    """Training and evaluation see the tokens that a user of the tokenizer sees."""
    items = as_items(task)[:20]
    tokens, labels = encode(items)
    tokenizer = build_tokenizer()

    for item, row, label in zip(items, tokens, labels, strict=True):
        expected = [*tokenizer(item.prompt + item.answer)["input_ids"], EOS]
        assert row[: len(expected)].tolist() == expected
        assert label[label != IGNORE].tolist() == [*(VOCABULARY[c] for c in item.answer), EOS]


def test_training_never_sees_a_document() -> None:
    """No prompt of any task, nor its sum with operands exchanged, is drawn for training, in any script."""
    shipped = {document["prompt"] for task in TASKS for document in shipped_documents(task)}
    swapped = {f"{p[3:5]}+{p[0:2]}{p[5]}" for p in shipped if p[2] == "+"}
    fed = [skill for group in BASE_VARIANTS.values() for skill in group] + list(DIET)

    for skill in fed:
        source = skill.items(random.Random(0), held_out=False)  # noqa: S311
        drawn = {next(source).prompt for _ in range(3000)}
        assert not drawn & (shipped | swapped), skill


def test_no_model_is_fed_the_cross_domain_task() -> None:
    """The cross-domain task is in no diet: a sum posed and answered in kanji is never trained."""
    fed = {skill for group in BASE_VARIANTS.values() for skill in group} | set(DIET)

    assert not fed & set(CROSS_DOMAIN.values())


def test_the_shipped_tasks_are_what_the_script_writes(tmp_path: Path) -> None:
    """The catalogue folder is reproduced byte by byte."""
    write_tasks(tmp_path)

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for path in written:
        assert path.read_bytes() == (ROOT / "fitness" / path.relative_to(tmp_path)).read_bytes()


def test_documents_are_distinct_and_asking_for_too_many_is_an_error() -> None:
    """A task has no document twice; when a skill has too few held-out prompts, that is said."""
    prompts = [document["prompt"] for task in TASKS for document in shipped_documents(task)]

    assert len(prompts) == len(set(prompts))
    with pytest.raises(ValueError, match="held-out prompts"):
        documents(SKILLS["sums"], 1700, 0)


def test_training_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    """The same seed gives the same weights, another seed others; the global random state is untouched."""
    base_plan = BasePlan(max_steps=3, pool_items=64, check_items=8, batch_size=8)
    expert_plan = ExpertPlan(steps=2, pool_items=64, batch_size=8)

    def run(seed: int) -> list[torch.Tensor]:
        base = train_base(seed, base_plan)
        expert = train_expert(base, SKILLS["sums"], seed, expert_plan)
        return [*base.state_dict().values(), *expert.state_dict().values()]

    before = torch.random.get_rng_state()
    first, second, other = run(5), run(5), run(6)

    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_one_pass_scores_as_greedy_generation_does() -> None:
    """Teacher-forced exact match equals exact match of generated text, item by item."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / "base")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")

    for task in TASKS:
        items = as_items(task)[:60]
        inputs = tokenizer([item.prompt for item in items], padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        generated = [text == item.answer for text, item in zip(texts, items, strict=True)]
        assert exact_match(model, *encode(items)).tolist() == generated


@pytest.mark.parametrize("name", NAMES)
def test_each_expert_is_strong_on_its_own_skill_and_weak_on_the_others(name: str) -> None:
    """On the shipped documents: at least 0.9 on the own skill, below 0.75 on any other; the base below 0.75 on all."""
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)

    for task in SKILLS:
        accuracy = float(exact_match(model, *encode(as_items(task))).float().mean())
        if EXPERTS.get(name) == task:
            assert accuracy >= 0.9
        else:
            assert accuracy < 0.75
