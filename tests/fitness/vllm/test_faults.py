"""Faults planted in a running vLLM: none of them gives an answer of the wrong weights."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import EvaluationError
from evomerge.fitness.vllm import merger as merging
from evomerge.fitness.vllm.engine import VllmEngine
from evomerge.fitness.vllm.merger import Merger
from evomerge.fitness.vllm.writable import Draft, WritableModule
from evomerge.recipe import Recipe
from evomerge.testing.engines import likelihoods

pytestmark = pytest.mark.timeout(600)
ZooRecipe = Callable[..., Recipe]


@pytest.fixture
def warm(engine: VllmEngine, zoo_recipe: ZooRecipe) -> VllmEngine:
    """An engine that serves a candidate."""
    engine.load(zoo_recipe(math=0.4, letters=0.3))
    return engine


@pytest.fixture
def sending(warm: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    """An engine that serves a candidate and brings the next one through vLLM's loaders, as it brings the first."""
    monkeypatch.setattr(merger(warm)._reloader._known, "writable", {})
    return warm


@pytest.fixture
def next_one(zoo_recipe: ZooRecipe) -> Recipe:
    return zoo_recipe(math=0.9, letters=0.1)


def merger(engine: VllmEngine) -> Merger:
    """Return the merging half of the engine's worker, which lives in this process."""
    worker = engine._warm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    found: Merger = worker.evomerge_merger
    return found


def refused(engine: VllmEngine, recipe: Recipe, match: str, *, stopped: bool = True) -> None:
    """Expect that a recipe is not served, and nothing else is.

    Where the fault leaves vLLM sound, `stopped=False` spares the next test a new one, to save time.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not stopped:
            patch.setattr(engine._warm, "stop", lambda: None)
        with pytest.raises(EvaluationError, match=match):
            engine.load(recipe)
        with pytest.raises(EvaluationError):
            likelihoods(engine)
    assert engine._warm.runs != stopped


def test_a_prefix_cache_that_cannot_be_emptied(
    warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm._warm._llm, "reset_prefix_cache", lambda: False)
    refused(warm, next_one, "did not empty its prefix cache", stopped=False)


def test_a_prefix_cache_that_is_kept(
    warm: VllmEngine, next_one: Recipe, zoo_recipe: ZooRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes after it is served by a new engine, as before."""
    before = likelihoods(warm)
    monkeypatch.setattr(warm._warm._llm, "reset_prefix_cache", lambda: True)
    refused(warm, next_one, "prefix cache still held 32 tokens")
    warm.load(zoo_recipe(math=0.4, letters=0.3))
    assert likelihoods(warm) == before


def test_a_swap_that_is_skipped_though_the_worker_says_otherwise(
    warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing reaches vLLM, all that is said is right: the answers alone tell."""

    def elsewhere(target: WritableModule, *_: Any) -> Draft:
        return Draft(target, {name: torch.empty(place.shape) for name, place in target.places.items()}, {})

    monkeypatch.setattr(WritableModule, "draft", elsewhere)
    monkeypatch.setattr(Draft, "finish", lambda draft: None)
    refused(warm, next_one, "answered with the weights of an earlier candidate")


def test_a_reload_that_is_skipped_though_the_worker_says_otherwise(
    sending: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merger(sending)._reloader, "send", lambda groups: [*groups])
    refused(sending, next_one, "answered with the weights of an earlier candidate")


def test_a_merge_that_stops_half_way(warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some modules are written to, the rest is not."""
    ahead = merging.in_order
    monkeypatch.setattr(merging, "in_order", lambda *given, **also: itertools.islice(ahead(*given, **also), 9))
    refused(warm, next_one, "loading failed with RuntimeError: generator raised StopIteration")


def test_weights_that_vllm_does_not_pack(warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    monkeypatch.setattr(UnquantizedLinearMethod, "process_weights_after_loading", lambda *_: None)
    refused(warm, next_one, r"did not pack 'model\.layers\.0\.mlp\.gate_up_proj\.weight'")


def test_a_swap_that_answers_for_the_swap_before(
    warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = merger(warm).swap(Recipe.from_mapping(warm._template.to_mapping()), warm._slots, "old")
    monkeypatch.setattr(merger(warm), "swap", lambda *_: old)
    refused(warm, next_one, "loaded 'old'", stopped=False)


def test_a_reload_that_does_nothing(sending: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = merger(sending)._reloader._runner
    monkeypatch.setattr(runner, "reload_weights", lambda weights_iterator: None)
    refused(sending, next_one, "took 0 tensors of a candidate and left the rest", stopped=False)


def test_a_reload_that_stops_half_way(sending: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = merger(sending)._reloader._runner
    reload = runner.reload_weights

    def half(weights_iterator: Any) -> None:
        reload(weights_iterator=itertools.islice(weights_iterator, 17))

    monkeypatch.setattr(runner, "reload_weights", half)
    refused(sending, next_one, "took 16 tensors of a candidate and left the rest", stopped=False)


def test_a_loader_that_drops_a_tensor(sending: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = merger(sending)._reloader._runner
    reload = runner.reload_weights

    def without(weights_iterator: Any) -> None:
        reload(weights_iterator=(pair for pair in weights_iterator if "layers.1.mlp.up_proj" not in pair[0]))

    monkeypatch.setattr(runner, "reload_weights", without)
    refused(sending, next_one, "did not load tensor 'model.layers.1.mlp.up_proj.weight'")


def out_of_memory(*_args: Any, **_options: Any) -> Any:
    """Have torch itself run out of memory."""
    return torch.empty(1 << 50)


def test_a_merge_that_runs_out_of_memory(warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.fitness.vllm.merger.make_tensor", out_of_memory)
    refused(warm, next_one, "vLLM has too little memory .* use fewer workers on this machine")


def test_a_request_that_runs_out_of_memory(
    warm: VllmEngine, zoo_recipe: ZooRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is no more to be trusted after that: the same candidate, loaded again, gets another one."""
    with monkeypatch.context() as patch:
        patch.setattr(merger(warm)._reloader._model, "forward", out_of_memory)
        with pytest.raises(EvaluationError, match="vLLM has too little memory"):
            likelihoods(warm)
    assert not warm._warm.runs
    warm.load(zoo_recipe(math=0.4, letters=0.3))
    assert likelihoods(warm)


def test_outputs_that_carry_another_version(
    warm: VllmEngine, next_one: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm._warm, "label", lambda version: None)
    refused(warm, next_one, "answered with the weights", stopped=False)


def test_weights_that_are_changed_behind_the_engines_back(
    warm: VllmEngine, next_one: Recipe, zoo_recipe: ZooRecipe
) -> None:
    """The recipe is known and nothing is to be loaded: its answers are not what they were."""
    model = merger(warm)._reloader._model
    model.model.norm.weight.data *= 1.25
    refused(warm, zoo_recipe(math=0.4, letters=0.3), "other answers than before with the same weights")


def test_two_candidates_that_agree_in_every_answer_are_both_served(
    warm: VllmEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Queries and keys that both change their sign: other weights, the same model to the last bit."""
    folders = []
    for sign in (1, -1):
        folder = tmp_path / str(sign)
        original = warm._all.models["math"].folder
        tensors = load_file(original / "model.safetensors")
        for part in ("q_proj", "k_proj"):
            tensors[f"model.layers.1.self_attn.{part}.weight"] *= sign
        folder.mkdir()
        for file in original.iterdir():
            if file.suffix != ".safetensors" and file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
        save_file(tensors, folder / "model.safetensors")
        folders.append(folder)
    values = []
    caplog.set_level(logging.INFO)
    for folder in folders:
        warm.load(
            Recipe.from_mapping(
                {
                    "recipe": 1,
                    "sources": {"base": {"model": str(folder)}},
                    "dtype": "float32",
                    "blend": {"method": "linear", "weight": {"base": 1.0}},
                }
            )
        )
        values.append(likelihoods(warm))
    assert values[0] == values[1]
    assert "give the same answers" in caplog.text
