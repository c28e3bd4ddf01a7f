"""The vLLM engine: real vLLM on the CPU, into which merges of the embedded models are swapped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch

from evomerge.catalog import catalog_root
from evomerge.errors import EvaluationError, InfeasibleError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.scorer import LmEvalScorer
from evomerge.fitness.suite import load_suite
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.fitness.vllm.engine import VllmEngine
from evomerge.recipe import Recipe
from evomerge.testing.engines import EngineContract, answers, likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

pytestmark = pytest.mark.timeout(600)
ZooRecipe = Callable[..., Recipe]
SIZES = {
    "vocab_size": 41,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
"""Of tiny models for the embedded models' tokenizer."""


@pytest.fixture(scope="session")
def oracle(zoo_recipe: ZooRecipe) -> Iterator[TransformersEngine]:
    """The transformers engine over the same sources."""
    config = EngineConfig(device="cpu", threads=1)
    running = TransformersEngine(zoo_recipe(math=1.0), base_dir=Path(), config=config, batch_size=64)
    yield running
    running.close()


def with_layers(recipe: Recipe, *layers: dict[str, Any]) -> Recipe:
    return Recipe.from_mapping({**recipe.to_mapping(), "layers": list(layers)})


def in_half(recipe: Recipe) -> Recipe:
    """Store the result in float16, which holds nothing above 65504."""
    return Recipe.from_mapping({**recipe.to_mapping(), "dtype": "float16"})


def one_to_one(recipe: Recipe, **special: dict[str, Any]) -> Recipe:
    """Write out the layers of a recipe; `third={...}` adds to what is said of the third."""
    names = ("first", "second", "third", "fourth")
    taken = [dict.fromkeys(recipe.sources, index) for index in range(len(names))]
    return with_layers(
        recipe, *({"take": take, **special.get(name, {})} for name, take in zip(names, taken, strict=True))
    )


def route(zoo_recipe: ZooRecipe, *hops: tuple[str, int, float]) -> Recipe:
    return with_layers(
        zoo_recipe(math=1.0), *({"take": {alias: layer}, "scale": scale} for alias, layer, scale in hops)
    )


def write_model(folder: Path, config: PreTrainedConfig) -> Path:
    from transformers import AutoModelForCausalLM

    from evomerge.demo.models import __path__ as models

    shutil.copytree(Path(next(iter(models))) / "base", folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def loaded(engine: VllmEngine, recipe: Recipe) -> dict[str, Any]:
    """Load a recipe and return what the worker said of it."""
    seen: list[dict[str, Any]] = []
    order = engine._warm.order
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._warm, "order", lambda *said: seen.extend(order(*said)) or seen)
        engine.load(recipe)
    return seen[-1]


class TestVllmEngine(EngineContract):
    """It keeps the contract."""

    @pytest.fixture
    def engine(self, engine: VllmEngine) -> VllmEngine:
        return engine

    @pytest.fixture
    def recipes(self, zoo_recipe: ZooRecipe) -> tuple[Recipe, Recipe]:
        return zoo_recipe(math=0.3, letters=0.2), zoo_recipe(math=0.7, letters=0.2)

    @pytest.fixture
    def broken(self, zoo_recipe: ZooRecipe) -> Recipe:
        return in_half(zoo_recipe(math=1e8))


def test_scores_and_answers_are_those_of_the_transformers_engine(
    engine: VllmEngine, oracle: TransformersEngine, zoo_recipe: ZooRecipe
) -> None:
    """On the embedded models' own tasks, every sample, in float32."""
    suite = load_suite(catalog_root() / "fitness" / "zoo.yaml")
    scorers = [LmEvalScorer(each, suite) for each in (engine, oracle)]
    for recipe in (
        zoo_recipe(math=0.6, japanese=0.4, letters=0.2),
        route(zoo_recipe, ("math", 0, 1.0), ("math", 1, 0.9), ("japanese", 2, 1.1), ("math", 3, 1.0)),
    ):
        ours, theirs = (scorer.score(recipe, "search") for scorer in scorers)
        assert ours.infeasible is None
        assert ours.documents == theirs.documents
        assert ours.facts == theirs.facts
        for name, values in theirs.samples.items():
            np.testing.assert_allclose(ours.samples[name], values, atol=1e-3, err_msg=name)
        assert max(float(values.mean()) for values in theirs.samples.values()) > 0.1


@pytest.mark.parametrize("source", ["base", "math", "japanese", "letters"])
def test_a_source_alone_is_served_as_transformers_does(
    source: str, engine: VllmEngine, oracle: TransformersEngine, zoo_recipe: ZooRecipe
) -> None:
    weights = {} if source == "base" else {source: 1.0}
    recipe = zoo_recipe(**(weights or {"math": 0.0}))
    engine.load(recipe)
    oracle.load(recipe)
    assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
    assert answers(engine) == answers(oracle)


def test_only_what_is_different_is_merged_and_loaded(engine: VllmEngine, zoo_recipe: ZooRecipe) -> None:
    """At the grain of vLLM's modules: queries, keys and values of a layer come together."""
    plain = zoo_recipe(math=0.31, letters=0.11)
    blend = {"method": "task_arithmetic", "weight": {"math": 0.9, "letters": 0.11}}
    engine.load(plain)
    assert loaded(engine, plain)["merged"] == 0
    assert loaded(engine, one_to_one(plain))["merged"] == 0
    assert loaded(engine, one_to_one(plain, third={"modules": {"mlp": blend}}))["merged"] == 3
    assert loaded(engine, one_to_one(plain, third={"modules": {"attention": blend}}))["merged"] == 3 + 4
    assert loaded(engine, plain)["merged"] == 4


def test_fifty_swaps_leave_the_answers_to_a_recipe_and_the_memory_as_they_were(
    engine: VllmEngine, zoo_recipe: ZooRecipe
) -> None:
    same = zoo_recipe(math=0.5, japanese=0.5)
    engine.load(same)
    first = likelihoods(engine), answers(engine)
    used = []
    for index in range(25):
        engine.load(zoo_recipe(math=0.02 * index, letters=0.3))
        engine.load(same)
        used.append(psutil.Process().memory_info().rss)
        assert likelihoods(engine) == first[0]
    assert answers(engine) == first[1]
    assert used[-1] - used[4] < 16 << 20


@pytest.mark.parametrize("num_threads", [1, 4])
def test_what_is_written_past_the_loaders_is_what_they_would_bring(
    num_threads: int, engine: VllmEngine, zoo_recipe: ZooRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, while several threads merge too; of the embedded models every module is written to."""
    monkeypatch.setattr("evomerge.fitness.vllm.merger.threads_for", lambda *_: num_threads)
    own = torch.get_num_threads()
    worker = engine._warm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    known = worker.evomerge_merger._reloader._known
    recipes = zoo_recipe(math=0.7), zoo_recipe(math=0.2, letters=0.4), route(zoo_recipe, ("math", 1, 0.7))
    written = []
    for recipe in recipes:
        engine.load(recipe)
        written.append((likelihoods(engine), answers(engine)))
    assert torch.get_num_threads() == own
    assert {module for modules in known.takers.values() for module in modules} == known.writable.keys()
    monkeypatch.setattr(known, "writable", {})
    for recipe, said in zip(recipes, written, strict=True):
        engine.load(recipe)
        assert (likelihoods(engine), answers(engine)) == said


def test_a_candidate_that_fails_half_way_leaves_nothing_behind(engine: VllmEngine, zoo_recipe: ZooRecipe) -> None:
    """Its first layers have been loaded when the last turns out not to be finite."""
    good = zoo_recipe(math=0.2, letters=0.4)
    engine.load(good)
    first = likelihoods(engine)
    last = {"blend": {"method": "task_arithmetic", "weight": {"math": 1e8}}}
    candidate = one_to_one(in_half(zoo_recipe(math=0.8)), fourth=last)
    with pytest.raises(InfeasibleError, match=r"layers\.3"):
        engine.load(candidate)
    with pytest.raises(EvaluationError, match="no candidate is loaded"):
        likelihoods(engine)
    engine.load(good)
    assert likelihoods(engine) == first


def test_a_candidate_with_finite_weights_and_infinite_logits_leaves_nothing_behind(
    engine: VllmEngine, zoo_recipe: ZooRecipe
) -> None:
    """Not even in the key-value cache, whose blocks the next candidate gets."""
    good = zoo_recipe(math=0.2, letters=0.4)
    engine.load(good)
    first = likelihoods(engine), answers(engine)
    head = {"blend": {"method": "task_arithmetic", "weight": {"math": 1e38}}}
    candidate = Recipe.from_mapping({**good.to_mapping(), "head": head})
    with pytest.raises(InfeasibleError, match="logits"):
        engine.load(candidate)
    engine.load(good)
    assert (likelihoods(engine), answers(engine)) == first


@pytest.mark.parametrize(
    "hops",
    [
        [("math", 0, 1.0), ("japanese", 1, 0.8)],
        [("math", 0, -1.0), ("math", 1, 1.2), ("math", 1, 1.0), ("letters", 3, -0.7)],
        [("math", 3, 1.0)],
    ],
)
def test_a_route_is_served_as_transformers_does(
    hops: list[tuple[str, int, float]], engine: VllmEngine, oracle: TransformersEngine, zoo_recipe: ZooRecipe
) -> None:
    """Shorter ones too: the slots that are left add nothing, and facts are those of the route."""
    recipe = route(zoo_recipe, *hops)
    running = engine.lm._llm.llm_engine
    engine.load(recipe)
    oracle.load(recipe)
    assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
    assert answers(engine) == answers(oracle)
    assert engine.facts() == oracle.facts()
    assert engine.lm._llm.llm_engine is running


def test_a_longer_route_gets_a_larger_engine_once(
    engine: VllmEngine, oracle: TransformersEngine, zoo_recipe: ZooRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    longer = route(zoo_recipe, *(("math", layer, 1.0) for layer in (0, 1, 2, 2, 3)))
    plain = zoo_recipe(math=0.5, letters=0.1)
    started = []
    for recipe in (longer, plain, longer, plain):
        engine.load(recipe)
        oracle.load(recipe)
        assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
        assert engine.facts() == oracle.facts()
        started.append(engine.lm._llm.llm_engine)
    assert len({id(each) for each in started}) == 1
    assert caplog.text.count("started anew for a candidate of 5 layers: 5 instead of 4") == 1


def qwen3() -> PreTrainedConfig:
    """Norms of queries and keys, and a head that is the input embedding."""
    from transformers import Qwen3Config

    return Qwen3Config(**SIZES, num_hidden_layers=3, initializer_range=0.3, tie_word_embeddings=True)


def gemma3() -> PreTrainedConfig:
    """Layers of two kinds, norms with an offset, norms at the end of branches."""
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"] * 2
    return Gemma3TextConfig(**SIZES, num_hidden_layers=4, layer_types=kinds, sliding_window=8, initializer_range=0.2)


@pytest.mark.parametrize("build", [qwen3, gemma3])
def test_a_candidate_of_another_architecture_gets_another_engine(
    build: Callable[[], PreTrainedConfig], engine: VllmEngine, zoo_recipe: ZooRecipe, tmp_path: Path
) -> None:
    """Never a wrong answer: it is served as transformers serves it, and so are those that come after it.

    Of Gemma's layers, each sits in a slot of its kind.
    """
    folder = write_model(tmp_path / "other", build())
    sources = {"other": {"model": str(folder)}}
    blend = {"method": "linear", "weight": {"other": 1.0}}
    other = Recipe.from_mapping({"recipe": 1, "sources": sources, "dtype": "float32", "blend": blend})
    moved = with_layers(other, *({"take": {"other": layer}, "scale": 1.1} for layer in (0, 2, 1)))
    first = zoo_recipe(math=0.5, letters=0.1)
    engine.load(first)
    before = likelihoods(engine)
    oracle = TransformersEngine(other, base_dir=Path(), config=EngineConfig(device="cpu"), batch_size=8)
    running = set()
    for recipe in (other, moved, other):
        engine.load(recipe)
        oracle.load(recipe)
        running.add(id(engine.lm._llm.llm_engine))
        assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
        assert engine.facts() == oracle.facts()
    assert len(running) == 1
    engine.load(first)
    assert likelihoods(engine) == before
