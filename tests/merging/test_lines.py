"""LiNeS on whole models: shares by depth, α from the model, and everything it stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import NotBuiltError
from evomerge.merging import Sources, make_tensor, materialise, open_sources, plan
from evomerge.merging.lines import drawn_in, norms, suggested
from evomerge.merging.passthrough import to_mergekit, to_mergekit_passthrough
from evomerge.merging.slots import own_slots, seat
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama

Array = NDArray[np.float64]
LINES = {"alpha": 0.5, "beta": 0.4}
LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three siblings of three layers; the head is the embedding of one of them."""
    found = tmp_path_factory.mktemp("siblings")
    for seed, name in enumerate(("base", "math", "ja")):
        write_tiny_llama(found / name, seed, layers=LAYERS)
        write_tiny_llama(found / "tied" / name, seed, tied=True)
    return found


def recipe(**keys: Any) -> Recipe:
    data: dict[str, Any] = {
        "recipe": 1,
        "sources": {name: {"model": name} for name in ("base", "math", "ja")},
        "base": "base",
        "dtype": "float32",
        "blend": {"method": "task_arithmetic", "weight": 1.0},
    }
    return Recipe.from_mapping({key: value for key, value in {**data, **keys}.items() if value is not None})


def merged(found: Recipe, folder: Path, **options: Any) -> dict[str, Tensor]:
    sources = open_sources(found, folder, **options)
    return {name: tensor.clone() for name, tensor in materialise(plan(found, sources))}


def stored(folder: Path) -> dict[str, Array]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name).double().numpy() for name in checkpoint.names()}


def share(name: str, alpha: float, beta: float, depth: int = LAYERS) -> float:
    if ".layers." not in name:
        return alpha
    return alpha + beta * int(name.split(".")[2]) / (depth - 1)


def test_two_experts_over_three_layers_by_hand() -> None:
    """τ = 2 and 1, summed; α is what the model says, β = 0.4: shares of .5, .7 and .9."""
    base, tuned = torch.zeros(1), [torch.tensor([2.0]), torch.tensor([1.0])]
    alpha = suggested(iter([norms(tuned[0] + tuned[1], base, tuned)] * LAYERS), 2)
    kept = [drawn_in(torch.tensor([3.0]), base, alpha + 0.4 * k / 2, torch.float32).item() for k in range(LAYERS)]

    assert alpha == 0.5
    assert kept == pytest.approx([1.5, 2.1, 2.7])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "model_stock", "multislerp", "tsv_m"])
def test_any_method_is_drawn_towards_the_base(folder: Path, method: str) -> None:
    base = stored(folder / "base")
    plain = merged(recipe(blend={"method": method}), folder)
    for name, tensor in merged(recipe(blend={"method": method}, lines=LINES), folder).items():
        expected = base[name] + share(name, 0.5, 0.4) * (plain[name].double().numpy() - base[name])
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=1e-6)


def test_nothing_kept_is_the_base_bit_by_bit(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "base")
    for name, tensor in merged(recipe(lines={"alpha": 0}), folder).items():
        assert torch.equal(tensor, checkpoint.tensor(name))


def test_everything_kept_is_the_merge_bit_by_bit(folder: Path) -> None:
    plain = merged(recipe(), folder)
    grown = merged(recipe(lines={"alpha": 0.0, "beta": 1.0}), folder)
    for name, tensor in merged(recipe(lines={}), folder).items():
        assert torch.equal(tensor, plain[name])
        if ".layers.2." in name:
            assert torch.equal(grown[name], plain[name])


def test_the_model_is_rounded_once(folder: Path) -> None:
    exact = merged(recipe(lines=LINES), folder)
    for name, tensor in merged(recipe(lines=LINES, dtype="bfloat16"), folder).items():
        assert torch.equal(tensor, exact[name].bfloat16())


@pytest.mark.parametrize("resident", [False, True])
def test_alpha_is_one_over_n_for_task_arithmetic(folder: Path, resident: bool) -> None:
    given = merged(recipe(lines={"alpha": 0.5, "beta": 0.4}), folder)
    for name, tensor in merged(recipe(lines={"alpha": "auto", "beta": 0.4}), folder, resident=resident).items():
        torch.testing.assert_close(tensor, given[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", ["", "tied"])
def test_alpha_is_a_ratio_of_norms_over_the_whole_model(folder: Path, place: str) -> None:
    """Tied tensors count once; the reference is NumPy in float64."""
    base, math, ja = (stored(folder / place / name) for name in ("base", "math", "ja"))
    blend = {"method": "ties", "weight": {"math": 0.8, "ja": 0.3}, "density": 0.5}
    plain = merged(recipe(blend=blend), folder / place)
    total = sum(np.abs(math[name] + ja[name] - 2 * base[name]).sum() for name in plain)
    change = sum(np.abs(plain[name].double().numpy() - base[name]).sum() for name in plain)
    alpha = total / change / 2

    for name, tensor in merged(recipe(blend=blend, lines={"alpha": "auto"}), folder / place).items():
        expected = base[name] + alpha * (plain[name].double().numpy() - base[name])
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=1e-5)


def test_what_is_the_bases_does_not_count_for_alpha(folder: Path) -> None:
    keys = {"embeddings": {"take": ["base"]}, "head": {"take": ["base"]}, "blend": {"method": "ties"}}
    base, math, ja = (stored(folder / name) for name in ("base", "math", "ja"))
    plain = merged(recipe(**keys), folder)
    inner = [name for name in plain if ".layers." in name]
    alpha = sum(np.abs(math[name] + ja[name] - 2 * base[name]).sum() for name in inner)
    alpha /= 2 * sum(np.abs(plain[name].double().numpy() - base[name]).sum() for name in inner)

    found = merged(recipe(**keys, lines={"alpha": "auto"}), folder)
    assert np.array_equal(found["model.embed_tokens.weight"].double().numpy(), base["model.embed_tokens.weight"])
    for name in inner:
        expected = base[name] + alpha * (plain[name].double().numpy() - base[name])
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=0, atol=1e-5)


def test_alpha_of_a_merge_that_is_the_base_is_0(folder: Path) -> None:
    """Both experts are the base itself, so that there is nothing to divide by."""
    sources = {"base": {"model": "base"}, "one": {"model": "base"}, "two": {"model": "base"}}
    checkpoint = open_checkpoint(folder / "base")
    for name, tensor in merged(recipe(sources=sources, lines={"alpha": "auto"}), folder).items():
        assert torch.equal(tensor, checkpoint.tensor(name))


def test_alpha_is_computed_once_a_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recipe(blend={"method": "ties"}, lines={"alpha": "auto", "beta": 0.2})
    sources = open_sources(found, folder)
    reads: list[str] = []
    working = Sources.working

    def counted(self: Sources, alias: str, *args: Any, **options: Any) -> Tensor:
        reads.append(alias)
        return working(self, alias, *args, **options)

    monkeypatch.setattr(Sources, "working", counted)
    wanted = plan(found, sources)
    make_tensor(wanted, wanted.tensors[0])
    first, reads[:] = len(reads), []
    make_tensor(wanted, wanted.tensors[0])
    other = plan(recipe(blend={"method": "ties"}, lines={"alpha": "auto", "beta": 0.9}), sources)
    make_tensor(other, other.tensors[0])
    assert first > len(wanted.tensors)
    assert len(reads) == 2 * 4  # base and both experts, and the base once more


def test_layers_in_another_order_are_drawn_towards_those_of_the_base_in_their_place(folder: Path) -> None:
    """Two layers of three, the last one first: depth is that of the merged model, θ_0 the layer that is taken."""
    layers = [{"take": {"base": 1, "math": 2}}, {"take": {"base": 0, "math": 0}, "scale": 2.0}]
    sources = {name: {"model": name} for name in ("base", "math")}
    base, math = stored(folder / "base"), stored(folder / "math")
    found = merged(recipe(sources=sources, layers=layers, lines={"alpha": 0.5, "beta": 0.25}), folder)

    for part, scale in (("mlp.up_proj.weight", 1.0), ("mlp.down_proj.weight", 0.5)):
        first, second = (f"model.layers.{index}.{part}" for index in (0, 1))
        root = base[second]
        expected = root + 0.5 * (math[f"model.layers.2.{part}"] - root)
        np.testing.assert_allclose(found[first].double().numpy(), expected, rtol=0, atol=1e-6)
        expected = scale * (base[first] + 0.75 * (math[first] - base[first]))
        np.testing.assert_allclose(found[second].double().numpy(), expected, rtol=0, atol=1e-6)


def test_layers_that_fill_a_slot_change_no_share(folder: Path) -> None:
    """In an engine of five slots, the three layers have the shares of the merge, and α is its own."""
    found = recipe(blend={"method": "ties"}, lines={"alpha": "auto", "beta": 0.4})
    sources = open_sources(found, folder)
    seated = seat(plan(found, sources), own_slots(sources)[:1] * 5)
    assert seated is not None
    placed = dict(materialise(seated))
    expected = merged(found, folder)
    assert sum(".layers." in name for name in placed) > sum(".layers." in name for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(placed[name], tensor)


def test_a_nested_recipe_keeps_its_share(folder: Path) -> None:
    inner = recipe(lines=LINES)
    outer = Recipe.from_mapping({"recipe": 1, "sources": {"merged": {"model": inner.to_mapping()}}, "dtype": "float32"})
    expected = merged(inner, folder)
    for name, tensor in merged(outer, folder).items():
        assert torch.equal(tensor, expected[name])


def test_no_mergekit_file_says_it(folder: Path) -> None:
    found = recipe(lines=LINES)
    for write in (to_mergekit, to_mergekit_passthrough):
        with pytest.raises(NotBuiltError, match="lines: a mergekit file has no word for"):
            write(plan(found, open_sources(found, folder)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-4, 4, width=32)] * 2), min_size=1, max_size=9), st.floats(0, 2), st.data())
def test_a_share_of_a_share_is_their_product(pairs: list[tuple[float, float]], one: float, data: Any) -> None:
    """Linear in τ, whatever the tensors are stored as; a share of 0 and of 1 are the ends."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    other = data.draw(st.floats(0, 2))
    merged_, base = torch.tensor(pairs).T
    base = base.to(dtype)
    twice = drawn_in(drawn_in(merged_, base, one, torch.float32), base, other, torch.float32)

    torch.testing.assert_close(twice, drawn_in(merged_, base, one * other, torch.float32), rtol=1e-5, atol=1e-4)
    assert torch.equal(drawn_in(merged_, base, 0.0, dtype), base)
    torch.testing.assert_close(drawn_in(merged_, base, 1.0, torch.float32), merged_, rtol=0, atol=1e-5)
