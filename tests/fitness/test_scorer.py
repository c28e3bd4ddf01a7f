"""The scorer: recipe in, per-sample scores out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import ConfigError, EvaluationError, InfeasibleError, SourceError, WorkerLostError
from evomerge.fitness import EngineConfig, FitnessConfig, Objectives, ScorerSpec, create_scorer
from evomerge.fitness.scorer import LmEvalScorer
from evomerge.fitness.suite import load_suite
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.recipe import Recipe, SourceConfig


def spec(folder: Path, **keys: Any) -> ScorerSpec:
    sources = {name: SourceConfig(model=name) for name in ("base", "one", "two")}
    settings: dict[str, Any] = {
        "sources": sources,
        "base": "base",
        "suite": folder / "suite.yaml",
        "base_dir": folder,
        "engine": EngineConfig(device="cpu"),
    }
    return ScorerSpec(**{**settings, **keys})


def recipe(weight: float) -> Recipe:
    sources = {name: {"model": name} for name in ("base", "one", "two")}
    blend = {"method": "task_arithmetic", "weight": weight}
    return Recipe.from_mapping({"recipe": 1, "sources": sources, "base": "base", "dtype": "float32", "blend": blend})


@pytest.fixture(scope="module")
def scorer(workplace: Path) -> Iterator[LmEvalScorer]:
    built = pickle.loads(pickle.dumps(spec(workplace)))()  # noqa: S301  what an executor does with it
    yield built
    built.close()


def test_an_evaluation_has_samples_documents_facts_and_seconds(scorer: LmEvalScorer) -> None:
    result = scorer.score(recipe(0.5), "search")
    assert result.infeasible is None
    assert result.split == "search"
    assert set(result.documents) == {"sums", "filtered-sums", "choices", "words", "rolling"}
    assert set(result.seconds) == {"materialise", "gate", "score"}
    assert result.facts["parameters"] > 0
    objectives = Objectives.parse(
        FitnessConfig(suite="-", objectives=("choices.acc", "-mean_response_tokens", "words.log_likelihood"))
    )
    assert [value.samples > 0 for value in objectives.measure(result)] == [True] * 3


def test_the_same_recipe_has_the_same_scores_and_another_has_others(scorer: LmEvalScorer) -> None:
    first, other, again = (scorer.score(recipe(weight), "search") for weight in (0.5, 0.9, 0.5))
    for name, values in first.samples.items():
        np.testing.assert_array_equal(values, again.samples[name])
    assert not np.array_equal(first.samples["words.log_likelihood"], other.samples["words.log_likelihood"])
    assert first.documents == other.documents


def test_splits_score_different_documents(scorer: LmEvalScorer) -> None:
    search, test = scorer.score(recipe(0.5), "search"), scorer.score(recipe(0.5), "test")
    assert "prepare" in test.seconds
    assert not set(search.documents["sums"]) & set(test.documents["sums"])


def test_a_broken_merge_is_a_result(scorer: LmEvalScorer) -> None:
    """Infeasible with its reason, no samples, and the scorer goes on."""
    result = scorer.score(recipe(3e38), "search")
    assert result.infeasible is not None
    assert "NaN or infinite" in result.infeasible
    assert not result.samples
    assert scorer.score(recipe(0.5), "search").infeasible is None


def test_a_model_whose_logits_are_not_finite_is_infeasible(
    scorer: LmEvalScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights may all be finite: an overflow on the way spoils the logits."""
    engine: Any = scorer._engine
    load = engine.load

    def overflowing(candidate: Recipe) -> None:
        load(candidate)
        engine.lm.model.model.norm.weight.fill_(float("inf"))

    monkeypatch.setattr(engine, "load", overflowing)
    result = scorer.score(recipe(0.5), "search")
    assert result.infeasible == "the merged model's logits are not finite"


class Fails:
    """An engine that fails as libraries do."""

    def __init__(self, inner: TransformersEngine, error: Exception) -> None:
        self.inner, self.error = inner, error

    @property
    def lm(self) -> Any:
        return self.inner.lm

    def load(self, recipe: Recipe) -> None:
        raise self.error

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self.inner.count_tokens(texts)

    def facts(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("no room"), EvaluationError),
        (RuntimeError("CUDA error"), EvaluationError),
        (SourceError("the file is gone"), SourceError),
    ],
)
def test_a_failure_that_is_not_the_recipes_is_an_error(
    scorer: LmEvalScorer, workplace: Path, error: Exception, kind: type[Exception]
) -> None:
    failing = LmEvalScorer(Fails(scorer._engine, error), load_suite(workplace / "suite.yaml"))  # type: ignore[arg-type]
    with pytest.raises(kind, match=str(error)):
        failing.score(recipe(0.5), "search")


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), EvaluationError("these are other weights")])
def test_a_failure_of_an_engine_that_must_be_replaced_says_that_the_worker_is_lost(
    scorer: LmEvalScorer, workplace: Path, error: Exception
) -> None:
    """Both executors then build another scorer and give the candidate out again."""
    suite = load_suite(workplace / "suite.yaml")
    failing = LmEvalScorer(Fails(scorer._engine, error), suite, fragile=True)  # type: ignore[arg-type]
    with pytest.raises(WorkerLostError, match=str(error)):
        failing.score(recipe(0.5), "search")


def test_an_infeasible_candidate_costs_no_engine(scorer: LmEvalScorer, workplace: Path) -> None:
    broken = Fails(scorer._engine, InfeasibleError("not finite"))  # type: ignore[arg-type]
    result = LmEvalScorer(broken, load_suite(workplace / "suite.yaml"), fragile=True).score(recipe(0.5), "search")
    assert result.infeasible == "not finite"


def test_a_task_that_cannot_be_loaded_stops_the_worker_at_its_start(
    workplace: Path, tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    (tmp_path / "tasks").symlink_to(workplace / "tasks")
    suite = write_suite(tmp_path, [{"task": "sums", "limit": 2}])
    with pytest.raises(ConfigError, match="documents"):
        create_scorer(spec(workplace, suite=suite))


def test_importing_the_package_imports_no_heavy_library() -> None:
    import subprocess
    import sys

    heavy = ("torch", "lm_eval", "transformers", "ray")
    code = f"import evomerge.fitness, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
