"""Per-sample scores: built once, equal to lm-eval's own, sample by sample."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError, InfeasibleError
from evomerge.fitness.splits import document_hash
from evomerge.fitness.suite import load_suite
from evomerge.fitness.tasks import SplitTasks
from evomerge.fitness.types import Minibatch


@pytest.fixture(scope="module")
def lm(workplace: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(workplace / "one"), device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def search(workplace: Path, lm: Any) -> SplitTasks:
    return SplitTasks.build(load_suite(workplace / "suite.yaml"), "search", lm)


def count(lm: Any) -> Any:
    return lambda texts: [len(lm.tok_encode(text, add_special_tokens=False)) for text in texts]


def positions(search: SplitTasks, lm: Any) -> dict[str, list[int]]:
    """Find, by its content, where each document of the split lies in the data."""
    found = {}
    for name, leaves in search._entries.items():
        order = [document_hash(row) for row in leaves[0].task.eval_docs]
        found[name] = [order.index(item.digest) for item in leaves[0].documents]
    return found


def reference(workplace: Path, search: SplitTasks, lm: Any) -> dict[str, Any]:
    import lm_eval

    manager = load_suite(workplace / "suite.yaml").manager
    chosen = positions(search, lm)
    result = lm_eval.simple_evaluate(
        lm, tasks=list(chosen), samples=chosen, log_samples=True, bootstrap_iters=0, task_manager=manager
    )
    assert result is not None
    return result["samples"]


@pytest.mark.filterwarnings("ignore")
def test_scores_equal_those_of_simple_evaluate_on_every_sample(
    workplace: Path, search: SplitTasks, lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation with few-shot prompts and filters, multiple choice and likelihood: the same number each
    time."""
    ours = search.score(lm, count(lm))
    again = search.score(lm, count(lm))
    theirs = reference(workplace, search, lm)
    compared = 0
    for task, logged in theirs.items():
        filters = {item["filter"] for item in logged}
        for name in sorted(filters):
            part = sorted((item for item in logged if item["filter"] == name), key=lambda item: item["doc_id"])
            suffix = f".{name}" if len(filters) > 1 else ""
            for metric in part[0]["metrics"]:
                if metric in ("perplexity", "bits_per_byte"):
                    continue
                expected = [float(item[metric]) for item in part]
                np.testing.assert_array_equal(ours.samples[f"{task}.{metric}{suffix}"], expected)
                np.testing.assert_array_equal(again.samples[f"{task}.{metric}{suffix}"], expected)
                compared += 1
    assert compared == 6
    words = sorted(theirs["words"], key=lambda item: item["doc_id"])
    np.testing.assert_array_equal(ours.samples["words.log_likelihood"], [item["perplexity"] for item in words])
    rolling = sorted(theirs["rolling"], key=lambda item: item["doc_id"])
    np.testing.assert_array_equal(
        ours.samples["rolling.log_likelihood"], [item["bits_per_byte"][0] for item in rolling]
    )


def test_the_scores_are_not_all_alike(search: SplitTasks, lm: Any) -> None:
    """Otherwise the comparison with lm-eval would say little."""
    scores = search.score(lm, count(lm)).samples
    assert 0 < scores["choices.acc"].mean() < 1
    assert np.unique(scores["words.log_likelihood"]).size > 5
    assert np.unique(scores["filtered-sums.response_tokens"]).size >= 2


def test_samples_and_documents_are_aligned_and_float64(search: SplitTasks, lm: Any) -> None:
    scores = search.score(lm, count(lm))
    for name, values in scores.samples.items():
        task = name.split(".")[0]
        assert values.dtype == np.float64
        assert values.shape == (len(scores.documents[task]),)
    assert set(scores.documents) == {"sums", "filtered-sums", "choices", "words", "rolling"}


def test_only_means_over_documents_are_samples(search: SplitTasks, lm: Any) -> None:
    """A perplexity's mean over documents is not a perplexity, so it is not offered under that name."""
    names = set(search.score(lm, count(lm)).samples)
    assert names == {
        "sums.exact_match",
        "sums.response_tokens",
        "filtered-sums.exact_match.first-number",
        "filtered-sums.exact_match.raw",
        "filtered-sums.response_tokens",
        "choices.acc",
        "choices.acc_norm",
        "words.acc",
        "words.log_likelihood",
        "rolling.log_likelihood",
    }


def test_the_metrics_known_from_the_files_are_those_that_come(workplace: Path, search: SplitTasks, lm: Any) -> None:
    known = load_suite(workplace / "suite.yaml").metrics()
    said = {f"{task}.{metric}" for task, metrics in known.items() for metric in metrics or ()}
    assert said == set(search.score(lm, count(lm)).samples)


def test_splits_share_no_document_and_leave_none_out(workplace: Path, lm: Any) -> None:
    suite = load_suite(workplace / "suite.yaml")
    parts = [SplitTasks.build(suite, split, lm) for split in ("search", "validation", "test")]
    lines = (workplace / "tasks" / "data" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    seen = [item.digest for part in parts for item in part._entries["sums"][0].documents]
    assert len(seen) == 40
    assert set(seen) == {document_hash(row) for row in rows}
    for first in parts:
        for second in parts:
            if first is not second:
                ours = {item.digest for item in first._entries["sums"][0].documents}
                assert not ours & {item.digest for item in second._entries["sums"][0].documents}


def test_repeats_are_asked_for_and_the_first_is_scored(
    workplace: Path, tmp_path: Path, lm: Any, write_suite: Callable[..., Path]
) -> None:
    text = (workplace / "tasks" / "sums.yaml").read_text() + "repeats: 3\n"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(text.replace("data/", f"{workplace}/tasks/data/"))
    part = SplitTasks.build(load_suite(write_suite(tmp_path, [{"task": "sums"}])), "search", lm)
    number = len(part._entries["sums"][0].documents)
    assert len(part.requests("generate_until")) == 3 * number
    assert part.score(lm, count(lm)).samples["sums.exact_match"].shape == (number,)


def test_a_group_is_scored_as_one_task(
    workplace: Path, tmp_path: Path, lm: Any, write_suite: Callable[..., Path]
) -> None:
    """Its documents are those of its tasks, its metrics those that all of them have."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("sums", "choices"):
        text = (workplace / "tasks" / f"{name}.yaml").read_text()
        (tasks / f"{name}.yaml").write_text(text.replace("data/", f"{workplace}/tasks/data/"))
    text = (tasks / "choices.yaml").read_text()
    (tasks / "more.yaml").write_text(text.replace("task: choices", "task: more"))
    (tasks / "group.yaml").write_text("group: both\ntask: [choices, more]\n")
    suite = load_suite(write_suite(tmp_path, [{"task": "both"}]))
    scores = SplitTasks.build(suite, "search", lm).score(lm, count(lm))
    assert set(scores.samples) == {"both.acc", "both.acc_norm"}
    assert suite.metrics() == {"both": ("acc", "acc_norm")}
    half = scores.samples["both.acc"].size // 2
    np.testing.assert_array_equal(scores.samples["both.acc"][:half], scores.samples["both.acc"][half:])


def test_a_score_that_is_not_finite_makes_the_recipe_infeasible(search: SplitTasks, lm: Any) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(lm, name)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(float("nan"), False)] * len(requests)

    with pytest.raises(InfeasibleError, match=r"words\.log_likelihood is not finite"):
        search.score(Broken(), count(lm))  # type: ignore[arg-type]
    assert search.score(lm, count(lm)).samples  # and the requests are clean again


def test_the_callers_random_state_is_left_alone(search: SplitTasks, lm: Any) -> None:
    import random

    import torch

    before = random.getstate(), torch.random.get_rng_state()
    search.score(lm, count(lm))
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_nothing_is_printed(
    workplace: Path, lm: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("lm_eval").level
    SplitTasks.build(load_suite(workplace / "suite.yaml"), "search", lm).score(lm, count(lm))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""
    assert not caplog.records
    assert logging.getLogger("lm_eval").level == level


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"task": "choices", "num_fewshot": 2}, "fixes num_fewshot at 0"),
        ({"task": "choices", "generation": {"max_gen_toks": 3}}, "generates nothing"),
        ({"task": "sums", "limit": 3}, "needs 2"),
    ],
)
def test_an_override_that_cannot_hold_is_refused(
    workplace: Path,
    tmp_path: Path,
    lm: Any,
    write_suite: Callable[..., Path],
    entry: dict[str, Any],
    fault: str,
) -> None:
    (tmp_path / "tasks").symlink_to(workplace / "tasks")
    suite = load_suite(write_suite(tmp_path, [entry]))
    with pytest.raises(ConfigError, match=fault):
        SplitTasks.build(suite, "search", lm)


def test_generation_overrides_and_limits_hold(
    workplace: Path, tmp_path: Path, lm: Any, write_suite: Callable[..., Path]
) -> None:
    (tmp_path / "tasks").symlink_to(workplace / "tasks")
    entry = {"task": "sums", "limit": 20, "num_fewshot": 1, "generation": {"max_gen_toks": 2}}
    part = SplitTasks.build(load_suite(write_suite(tmp_path, [entry])), "search", lm)
    requests = part.requests("generate_until")
    assert len(requests) < 20
    assert all(item.args[1]["max_gen_toks"] == 2 and item.args[1]["until"] == ["\n"] for item in requests)
    assert all(item.args[0].count("\n") == 1 for item in requests)


def test_a_minibatch_is_a_part_of_the_documents_with_the_scores_they_have_in_the_whole(
    workplace: Path, lm: Any
) -> None:
    whole = SplitTasks.build(load_suite(workplace / "suite.yaml"), "search", lm)
    everything = whole.score(lm, count(lm))
    part = whole.part(Minibatch(documents=5, draw=1)).score(lm, count(lm))
    assert whole.part(Minibatch(documents=5, draw=1)).score(lm, count(lm)).documents == part.documents
    assert whole.part(Minibatch(documents=5, draw=2)).score(lm, count(lm)).documents != part.documents
    for task, digests in part.documents.items():
        places = [everything.documents[task].index(digest) for digest in digests]
        assert len(places) == 5
        assert places == sorted(places)
        for metric, values in part.samples.items():
            if metric.startswith(f"{task}."):
                np.testing.assert_allclose(values, everything.samples[metric][places], atol=1e-4)
    assert whole.score(lm, count(lm)).documents == everything.documents


def test_a_minibatch_larger_than_the_split_is_all_of_it(workplace: Path, lm: Any) -> None:
    whole = SplitTasks.build(load_suite(workplace / "suite.yaml"), "search", lm)
    assert whole.part(Minibatch(documents=10_000, draw=0)).score(lm, count(lm)).documents == (
        whole.score(lm, count(lm)).documents
    )
