"""Exported routes compute what their hops compute, for every architecture that is said to be understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evomerge.checkpoints import FAMILIES
from evomerge.errors import NotBuiltError
from evomerge.merging import MergePlan, build, materialise, needed_slots, open_sources, plan, seat
from evomerge.recipe import Recipe
from tests.merging.hops import SETTINGS, Hops, hop_by_hop, load, logits, random_hops, tokens, write_tiny

# transformers warns of fast kernels that are missing here, and of token ids of tiny vocabularies.
pytestmark = pytest.mark.filterwarnings("ignore")
DEPTHS = {"a": 3, "b": 4}
EXACT = 1e-9
"""On logits of about 1, in float64, with the epsilon of all norms at 0."""


def only(alias: str) -> dict[str, Any]:
    return {"blend": {"method": "linear", "weight": {one: float(one == alias) for one in DEPTHS}}}


def route_recipe(hops: Hops, *, head: str = "a", **keys: Any) -> Recipe:
    data = {
        "recipe": 1,
        "sources": {alias: {"model": alias} for alias in DEPTHS},
        "dtype": "float32",
        "embeddings": only("a"),
        "head": only(head),
        "layers": [{"take": {alias: layer}, "scale": scale} for alias, layer, scale in hops],
    }
    return Recipe.from_mapping({**data, **keys})


def write_sources(folder: Path, kind: str, **more: Any) -> dict[str, Path]:
    return {
        alias: write_tiny(folder / alias, kind, seed=seed, layers=depth, **more)
        for seed, (alias, depth) in enumerate(DEPTHS.items())
    }


def write_double(merge: MergePlan, folder: Path) -> Path:
    """Write a plan as a checkpoint of float64 weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(merge.config()))
    tensors = {name: tensor.clone() for name, tensor in materialise(merge, dtype=torch.float64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_slots(merge: MergePlan, num_slots: int) -> MergePlan:
    """Lay a merge into a model of more layers, all behind the last one of its kind."""
    kinds = needed_slots(merge)
    seated = seat(merge, (*kinds, *kinds[-1:] * (num_slots - len(kinds))))
    assert seated is not None
    return seated


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_every_understood_architecture_is_tested() -> None:
    assert SETTINGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("kind", "tied"),
    [(kind, False) for kind in sorted(FAMILIES)] + [(kind, True) for kind in ("llama", "gemma2", "gpt_neox", "mamba")],
)
def test_an_export_computes_its_hops(kind: str, tied: bool, tmp_path: Path) -> None:
    """Repeats, two sources of different depth, scales in ±[0.5, 1.5]; also in a model of more slots than hops."""
    folders = write_sources(tmp_path, kind, tie_word_embeddings=tied)
    hops = random_hops(DEPTHS, 6, seed=3, negative=not FAMILIES[kind].bare)
    if kind.startswith("deepseek"):  # layers without experts can only come first
        hops = [("a", 0, hops[0][2]), *((alias, max(1, layer), scale) for alias, layer, scale in hops[1:])]
    head = "a" if tied else "b"
    recipe = route_recipe(hops, head=head)
    merge = plan(recipe, open_sources(recipe, tmp_path))

    expected = hop_by_hop(folders, hops, embeddings="a", head=head)
    assert expected.std() > 0.05
    found = logits(load(write_double(merge, tmp_path / "out")))
    assert difference(found, expected) <= EXACT
    slots = logits(load(write_double(in_slots(merge, 8), tmp_path / "slots")))
    assert difference(slots, found) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("falcon", {"new_decoder_architecture": False, "parallel_attn": False, "bias": True}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
        ("stablelm", {"use_parallel_residual": True}),
        ("phi", {"qk_layernorm": True}),
    ],
)
def test_other_forms_of_a_block(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    folders = write_sources(tmp_path, kind, tie_word_embeddings=False, **more)
    hops = random_hops(DEPTHS, 5, seed=5)
    recipe = route_recipe(hops)
    merge = plan(recipe, open_sources(recipe, tmp_path))

    found = logits(load(write_double(merge, tmp_path / "out")))
    assert difference(found, hop_by_hop(folders, hops, embeddings="a", head="a")) <= EXACT


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("llamas")
    return folder, write_sources(folder, "llama")


scales = st.floats(0.5, 1.5) | st.floats(-1.5, -0.5)
hop = st.tuples(st.just("a"), st.integers(0, 2), scales) | st.tuples(st.just("b"), st.integers(0, 3), scales)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hops=st.lists(hop, min_size=1, max_size=5))
def test_any_route(hops: Hops, llamas: tuple[Path, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, folders = llamas
    recipe = route_recipe(hops)
    merge = plan(recipe, open_sources(recipe, folder))

    found = logits(load(write_double(merge, tmp_path_factory.mktemp("out") / "model")))
    assert difference(found, hop_by_hop(folders, hops, embeddings="a", head="a")) <= EXACT


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.2)])
def test_a_built_folder_loads_in_its_own_dtype(
    dtype: str, tolerance: float, llamas: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder, folders = llamas
    hops = random_hops(DEPTHS, 5, seed=11)
    build(route_recipe(hops, dtype=dtype), tmp_path / "out", base_dir=folder)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = model(input_ids=tokens()).logits.double()

    assert model.config.num_hidden_layers == 5
    assert model.dtype == getattr(torch, dtype)
    assert difference(found, hop_by_hop(folders, hops, embeddings="a", head="a")) <= tolerance


def test_a_layer_of_a_route_may_blend(llamas: tuple[Path, dict[str, Path]]) -> None:
    """Any layers of any sources; the stream's scale then divides the blend."""
    folder, _ = llamas
    layers = [
        {"take": {"a": 2, "b": 0}, "blend": {"method": "linear", "weight": {"a": 0.25, "b": 0.75}}, "scale": 0.8},
        {"take": {"b": 3}, "scale": 0.5},
    ]
    recipe = route_recipe([], layers=layers)
    sources = open_sources(recipe, folder)
    found = dict(materialise(plan(recipe, sources)))

    def there(alias: str, layer: int) -> torch.Tensor:
        return sources.models[alias].tensor(f"model.layers.{layer}.mlp.down_proj.weight").double()

    assert torch.allclose(
        found["model.layers.0.mlp.down_proj.weight"].double(), (0.25 * there("a", 2) + 0.75 * there("b", 0)) / 0.8
    )
    assert torch.equal(found["model.layers.1.mlp.down_proj.weight"], (there("b", 3) / 0.4).float())
    assert torch.equal(
        found["model.layers.1.mlp.up_proj.weight"], sources.models["b"].tensor("model.layers.3.mlp.up_proj.weight")
    )


def test_a_route_is_a_source_of_another_recipe(llamas: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """A route of a route is the route through both."""
    folder, _ = llamas
    inner = [("a", 1, 0.7), ("b", 3, -1.2), ("a", 0, 1.4)]
    outer = Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {"inner": {"model": route_recipe(inner).to_mapping()}},
            "dtype": "float32",
            "layers": [{"take": {"inner": 0}}, {"take": {"inner": 1}, "scale": 0.9}],
        }
    )
    build(outer, tmp_path / "out", base_dir=folder)
    model = load(tmp_path / "out")

    # The inner fold is exact as a model: its layers as they are, divided by 0.7 and -0.84, its stream never scaled.
    build(route_recipe(inner), tmp_path / "inner", base_dir=folder)
    expected = hop_by_hop(
        {"inner": tmp_path / "inner"}, [("inner", 0, 1.0), ("inner", 1, 0.9)], embeddings="inner", head="inner"
    )
    assert difference(logits(model), expected) <= 1e-5


class TestSlots:
    def test_a_merge_layer_by_layer_fits_too(self, llamas: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
        folder, folders = llamas
        recipe = Recipe.from_mapping({"recipe": 1, "sources": {"a": {"model": "a"}}, "dtype": "float32"})
        merge = in_slots(plan(recipe, open_sources(recipe, folder)), 5)

        assert merge.config()["num_hidden_layers"] == 5
        assert difference(logits(load(write_double(merge, tmp_path / "out"))), logits(load(folders["a"]))) == 0

    def test_idle_layers_add_exactly_nothing_in_any_dtype(self, llamas: tuple[Path, dict[str, Path]]) -> None:
        folder, _ = llamas
        recipe = route_recipe([("a", 0, 0.7)], dtype="bfloat16")
        found = dict(materialise(in_slots(plan(recipe, open_sources(recipe, folder)), 2)))

        for part in ("self_attn.o_proj", "mlp.down_proj"):
            assert not found[f"model.layers.1.{part}.weight"].any()
            assert not found[f"model.layers.1.{part}.bias"].any()


def test_norms_without_weights_have_no_sign_to_take(tmp_path: Path) -> None:
    write_sources(tmp_path, "olmo")
    recipe = route_recipe([("a", 0, 1.0), ("b", 1, -0.5)])
    with pytest.raises(NotBuiltError, match=r"layers\[1\]\.scale: the norms of 'olmo' have no weights"):
        plan(recipe, open_sources(recipe, tmp_path))


def test_layers_without_experts_can_only_come_first_where_a_number_says_which(tmp_path: Path) -> None:
    from evomerge.errors import SourceError

    write_sources(tmp_path, "deepseek_v3")
    recipe = route_recipe([("a", 1, 1.0), ("a", 0, 1.0)])
    with pytest.raises(SourceError, match="first_k_dense_replace"):
        plan(recipe, open_sources(recipe, tmp_path)).config()
