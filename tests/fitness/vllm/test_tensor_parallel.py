"""One model over two processes: each merges its part, both agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from evomerge.errors import InfeasibleError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.fitness.vllm.engine import VllmEngine
from evomerge.recipe import Recipe
from evomerge.testing.engines import answers, likelihoods

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_ranks_serve_what_one_does_and_merge_half_each(
    engine: VllmEngine, zoo_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the engine that they displace, since vLLM allows one a process, starts anew when it is needed."""
    displaced = engine
    displaced.load(zoo_recipe(math=0.3, letters=0.2))
    before = likelihoods(displaced)
    config = EngineConfig(kind="vllm", device="cpu", threads=1, kv_cache_gib=0.125, tensor_parallel=2)
    engine = VllmEngine(zoo_recipe(math=1.0), base_dir=Path(), config=config, batch_size=8)
    ranks = psutil.Process().children(recursive=True)
    oracle = TransformersEngine(zoo_recipe(math=1.0), base_dir=Path(), config=EngineConfig(device="cpu"), batch_size=8)
    said: list[list[dict[str, Any]]] = []
    order = engine._warm.order
    monkeypatch.setattr(engine._warm, "order", lambda *what: said.append(order(*what)) or said[-1])
    try:
        for weight in (0.3, 0.9):
            recipe = zoo_recipe(math=weight, letters=0.2)
            engine.load(recipe)
            oracle.load(recipe)
            assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
            assert answers(engine) == answers(oracle)
        first, second = said
        total = engine.facts()["parameters"]
        assert [answer["values"] for answer in first] == [total, total]  # which part is whose is seen then
        norms = 9 * 96.0  # on both of them; everything else on one
        assert sum(answer["values"] for answer in second) == total + norms
        assert all(answer["values"] < 0.52 * total for answer in second)
        assert second[0]["fingerprint"] != second[1]["fingerprint"]
        assert second[0]["whole"] == second[1]["whole"] != {}
        broken = Recipe.from_mapping({**zoo_recipe(math=1e8).to_mapping(), "dtype": "float16"})
        with pytest.raises(InfeasibleError):
            engine.load(broken)
        engine.load(recipe)
        assert likelihoods(engine) == pytest.approx(likelihoods(oracle), abs=1e-3)
    finally:
        engine.close()
    assert not any(rank.is_running() and rank.name().startswith("VLLM") for rank in ranks)
    displaced.load(zoo_recipe(math=0.3, letters=0.2))
    assert likelihoods(displaced) == before
