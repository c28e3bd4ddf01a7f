"""Suite files: read strictly, tasks found beside them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.fitness.config import FitnessConfig
from evomerge.fitness.suite import check_fitness, load_suite


def wanted(*objectives: str) -> FitnessConfig:
    return FitnessConfig(suite="suite.yaml", objectives=objectives)


def test_metrics_are_known_without_loading_data(workplace: Path) -> None:
    assert load_suite(workplace / "suite.yaml").metrics() == {
        "sums": ("exact_match", "response_tokens"),
        "filtered-sums": ("exact_match.first-number", "exact_match.raw", "response_tokens"),
        "choices": ("acc", "acc_norm"),
        "words": ("acc", "log_likelihood"),
        "rolling": ("log_likelihood",),
    }


def test_objectives_are_checked_against_the_suite(workplace: Path) -> None:
    suite = load_suite(workplace / "suite.yaml")
    names = ("sums.exact_match - 0.1 * mean_response_tokens", '"filtered-sums.exact_match.raw"')
    assert check_fitness(wanted(*names), suite).names == names
    with pytest.raises(ConfigError, match=r"no metric 'sums\.acc'"):
        check_fitness(wanted("sums.acc"), suite)
    with pytest.raises(ConfigError, match=r"no metric 'words\.perplexity'"):
        check_fitness(wanted("words.perplexity"), suite)


def test_data_files_lie_beside_the_task_file_wherever_one_stands(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = load_suite(Path(os.path.relpath(workplace / "suite.yaml")))
    (task,) = suite.load_tasks(suite.config.tasks[0]).values()
    assert len(task.eval_docs) == 40


@pytest.mark.slow
def test_a_task_that_does_not_exist_is_an_error_with_the_nearest(
    workplace: Path, tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    """lm-eval's own tasks are looked through as well, which takes seconds."""
    (tmp_path / "tasks").symlink_to(workplace / "tasks")
    with pytest.raises(ConfigError, match="no task 'sumss' here or in lm-eval; did you mean 'sums'"):
        load_suite(write_suite(tmp_path, [{"task": "sumss"}])).metrics()


@pytest.mark.slow
def test_lm_evals_own_tasks_are_found(tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    """Their metrics are read from their files, with no data fetched."""
    tasks = [{"task": "gsm8k"}, {"task": "arc_easy"}, {"task": "lambada_openai"}]
    suite = load_suite(write_suite(tmp_path, tasks, include=None))
    metrics = suite.metrics()
    assert metrics["gsm8k"] == (
        "exact_match.strict-match",
        "exact_match.flexible-extract",
        "response_tokens",
    )
    assert metrics["arc_easy"] == ("acc", "acc_norm")
    assert metrics["lambada_openai"] == ("acc", "log_likelihood")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("suite: 1\ntasks: [{task: sums}, {task: sums}]\n", r"suite.yaml:2.*'sums' stands twice"),
        ("suite: 1\ntasks: [{task: sums}]\ninclude: nowhere\n", r"suite.yaml:3.*no folder 'nowhere'"),
        ("suite: 1\ntasks: [{task: sums, fewshot: 3}]\n", r"unknown key 'fewshot'"),
        ("suite: 1\ntasks: []\n", "tasks"),
        ("suite: 1\ntasks: [{task: sums}]\nsplits: {search: 0.5, validation: 0.1, test: 0.1}\n", "sum to 1"),
        ("suite: 2\ntasks: [{task: sums}]\n", "suite"),
    ],
)
def test_a_wrong_suite_file_is_an_error_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        load_suite(tmp_path / "suite.yaml")


def test_a_missing_suite_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("data/test.jsonl", "data/nothing.jsonl", "no data file 'data/nothing.jsonl'"),
        ("test_split: test", "test_split: exam", "cannot be loaded"),
        ("task: sums", "task: sums\nunsafe_code: true", "runs code"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_an_error(
    workplace: Path, tmp_path: Path, write_suite: Callable[..., Path], old: str, new: str, fault: str
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "data").symlink_to(workplace / "tasks" / "data")
    text = (workplace / "tasks" / "sums.yaml").read_text().replace(old, new)
    (tmp_path / "tasks" / "sums.yaml").write_text(text)
    suite = load_suite(write_suite(tmp_path, [{"task": "sums"}]))
    with pytest.raises(ConfigError, match=fault):
        suite.load_tasks(suite.config.tasks[0])
