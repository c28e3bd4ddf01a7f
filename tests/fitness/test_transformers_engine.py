"""The transformers engine: weights swapped in place, served as lm-eval's own `hf` model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evomerge.errors import ConfigError, InfeasibleError, SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.merging import build
from evomerge.recipe import Recipe
from evomerge.testing.engines import EngineContract, answers, likelihoods

CPU = EngineConfig(device="cpu")


def recipe(folder: Path, weight: float, **keys: object) -> Recipe:
    sources = {name: {"model": str(folder / name)} for name in ("base", "one", "two")}
    blend = {"method": "task_arithmetic", "weight": {"one": weight, "two": 0.25}}
    return Recipe.from_mapping(
        {"recipe": 1, "sources": sources, "base": "base", "dtype": "float32", "blend": blend, **keys}
    )


def start(folder: Path, config: EngineConfig = CPU) -> TransformersEngine:
    return TransformersEngine(recipe(folder, 1.0), base_dir=folder, config=config, batch_size=4)


@pytest.fixture(scope="module")
def shared(workplace: Path) -> Iterator[TransformersEngine]:
    engine = start(workplace)
    yield engine
    engine.close()


class TestTransformersEngine(EngineContract):
    """It keeps the contract."""

    @pytest.fixture
    def engine(self, shared: TransformersEngine) -> TransformersEngine:
        return shared

    @pytest.fixture
    def recipes(self, workplace: Path) -> tuple[Recipe, Recipe]:
        return recipe(workplace, 0.3), recipe(workplace, 0.7)

    @pytest.fixture
    def broken(self, workplace: Path) -> Recipe:
        return recipe(workplace, 3e38)


def test_the_resident_model_equals_the_exported_checkpoint(
    workplace: Path, tmp_path: Path, shared: TransformersEngine
) -> None:
    """Bit for bit: plain transformers loads the folder that the merge writes and computes the same logits."""
    from transformers import AutoModelForCausalLM

    candidate = recipe(workplace, 0.4)
    build(candidate, tmp_path / "out", base_dir=workplace)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    shared.load(candidate)
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, shared.lm.model(ids).logits)


def test_scores_equal_lm_evals_hf_model_on_the_exported_checkpoint(
    workplace: Path, tmp_path: Path, shared: TransformersEngine
) -> None:
    from lm_eval.models.huggingface import HFLM

    candidate = recipe(workplace, 0.4)
    build(candidate, tmp_path / "out", base_dir=workplace)
    shared.load(candidate)

    class Exported:
        lm = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=4)

    assert likelihoods(Exported()) == likelihoods(shared)  # type: ignore[arg-type]
    assert answers(Exported()) == answers(shared)  # type: ignore[arg-type]


def test_a_tied_head_follows_the_embedding(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    """The head is not among the merged tensors, has no place of its own, and counts once."""
    for seed, name in enumerate(("base", "one", "two")):
        write_model(tmp_path / name, seed, tied=True)
    engine = start(tmp_path)
    engine.load(recipe(tmp_path, 0.5))
    model = engine.lm.model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    first = likelihoods(engine)
    engine.load(recipe(tmp_path, 0.6))
    assert likelihoods(engine) != first
    untied = 48 * 32
    assert engine.facts()["parameters"] == sum(p.numel() for p in set(model.parameters()))
    assert engine.facts()["parameters"] < sum(p.numel() for p in model.state_dict().values()) - untied / 2


def test_generation_settings_of_the_base_hold(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    """transformers reads them with the exported checkpoint, so the engine must too."""
    for seed, name in enumerate(("base", "one", "two")):
        write_model(tmp_path / name, seed)
    path = tmp_path / "base" / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "repetition_penalty": 1.5}))
    assert start(tmp_path).lm.model.generation_config.repetition_penalty == 1.5


def test_weights_too_large_for_the_engines_dtype_are_infeasible(workplace: Path) -> None:
    engine = start(workplace, EngineConfig(device="cpu", dtype="float16"))
    engine.load(recipe(workplace, 0.5))
    assert all(math.isfinite(value) for value in likelihoods(engine))
    with pytest.raises(InfeasibleError):
        engine.load(recipe(workplace, 1e6))


def test_a_recipe_over_other_sources_opens_them(workplace: Path, shared: TransformersEngine) -> None:
    text = {
        "recipe": 1,
        "sources": {"only": {"model": "two"}},
        "dtype": "float32",
        "blend": {"method": "linear"},
    }
    shared.load(Recipe.from_mapping(text))
    from safetensors.torch import load_file

    stored = load_file(workplace / "two" / "model.safetensors")
    assert torch.equal(shared.lm.model.state_dict()["lm_head.weight"], stored["lm_head.weight"])


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_an_error(workplace: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        start(workplace, EngineConfig(device=device))


def test_an_architecture_that_transformers_lacks_is_an_error(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        folder = write_model(tmp_path / name, seed)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_thing"}))
    with pytest.raises(SourceError):
        start(tmp_path)


def test_the_callers_random_state_is_left_alone(workplace: Path) -> None:
    before = torch.random.get_rng_state()
    start(workplace)
    assert torch.equal(torch.random.get_rng_state(), before)
