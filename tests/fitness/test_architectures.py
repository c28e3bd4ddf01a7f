"""Every architecture of causal language models is scored by the transformers engine, with the weights of the export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.errors import SourceError
from evomerge.fitness.config import EngineConfig
from evomerge.fitness.conversion import Conversion
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.merging import build
from evomerge.recipe import Recipe
from evomerge.testing.engines import likelihoods
from tests.fitness.conftest import write_tokenizer
from tests.merging.architectures import CAUSAL, computed, inputs, stored, write_model, write_weights

# transformers warns of fast kernels that are missing here.
pytestmark = pytest.mark.filterwarnings("ignore")


def average(folder: Path, weight: float = 0.3) -> Recipe:
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {name: {"model": str(folder / name)} for name in ("a", "b")},
            "dtype": "float32",
            "blend": {"method": "linear", "weight": {"a": weight, "b": 1 - weight}},
        }
    )


def write_sources(folder: Path, kind: str) -> Path:
    for seed, name in enumerate(("a", "b")):
        write_tokenizer(write_model(folder / name, kind, seed))
    return folder


def start(folder: Path) -> TransformersEngine:
    return TransformersEngine(average(folder), base_dir=folder, config=EngineConfig(device="cpu"), batch_size=4)


def served(engine: TransformersEngine) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = engine.lm.model(**inputs("llama")).logits
    return found


@pytest.mark.parametrize("kind", [*CAUSAL, "gemma3"])
def test_a_merge_is_scored_as_its_export_computes(kind: str, tmp_path: Path) -> None:
    """Bit for bit, also where the checkpoint names or divides its tensors otherwise than the modules do."""
    engine = start(write_sources(tmp_path, kind))
    for weight in (0.3, 0.6):
        engine.load(average(tmp_path, weight))
        build(average(tmp_path, weight), tmp_path / str(weight), base_dir=tmp_path)
        assert torch.equal(served(engine), computed(tmp_path / str(weight), kind))
    assert all(score < 0 for score in likelihoods(engine))
    engine.close()


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_an_encoder_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    write_sources(tmp_path, kind)
    with pytest.raises(SourceError, match=r"this is a \w+, which generates no text"):
        start(tmp_path)


def test_old_names_and_masks_of_gpt2_are_loaded_as_transformers_does(tmp_path: Path) -> None:
    """The first checkpoints have no `transformer.` before their names, and store causal masks."""
    write_sources(tmp_path, "gpt2")
    for name in ("a", "b"):
        old = {key.removeprefix("transformer."): tensor for key, tensor in stored(tmp_path / name).items()}
        masks = {f"h.{layer}.attn.bias": torch.tril(torch.ones(1, 1, 64, 64)) for layer in range(2)}
        write_weights(tmp_path / name, old | masks)
    engine = start(tmp_path)
    engine.load(average(tmp_path))
    build(average(tmp_path), tmp_path / "out", base_dir=tmp_path)
    assert torch.equal(served(engine), computed(tmp_path / "out", "gpt2"))


def test_a_head_that_is_not_a_language_models_is_refused_by_name(tmp_path: Path) -> None:
    write_sources(tmp_path, "llama")
    for name in ("a", "b"):
        tensors = stored(tmp_path / name)
        write_weights(tmp_path / name, {"score.weight": tensors.pop("lm_head.weight")[:2].clone(), **tensors})
    with pytest.raises(SourceError, match=r"'score.weight' has no place .* LlamaForCausalLM"):
        start(tmp_path).load(average(tmp_path))


def test_what_transformers_cannot_convert_is_one_sentence(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "a", "mixtral", 0))
    conversion = Conversion(model, stored(tmp_path / "a"))
    group = next(group for group in conversion.groups if len(group.names) == 8)
    tensors = [torch.zeros(2 + index, 3) for index in range(8)]
    with pytest.raises(SourceError, match="transformers cannot convert the tensor"):
        conversion.convert(group, tensors)


def test_nothing_is_lost_between_the_names_of_a_checkpoint_and_those_of_its_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "a", "mixtral", 0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    conversion = Conversion(model, stored(folder))
    found = {place: tensor for _, place, tensor in conversion.converted(stored(folder).items())}
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert conversion.unplaced == ()
