"""State dicts as rows of a matrix, and back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from evomerge.errors import SourceError
from evomerge.merging.state_dicts import StateDicts


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_a_row_is_the_floating_point_tensors_in_the_sorted_order_of_their_names() -> None:
    first = {
        "b": torch.tensor([[3.0, 4.0]]),
        "a": torch.tensor([1.0]),
        "steps": torch.tensor(7),
        "c": torch.tensor(5.0),
    }
    sources = StateDicts({"one": first, "two": {name: tensor * 2 for name, tensor in reversed(first.items())}})
    assert sources.vectors.tolist() == [[1.0, 3.0, 4.0, 5.0], [2.0, 6.0, 8.0, 10.0]]
    assert sources.ranges == {"a": (0, 1), "b": (1, 3), "c": (3, 4)}


def test_every_source_comes_back_and_loads() -> None:
    models = {str(seed): network(seed) for seed in range(3)}
    sources = StateDicts({alias: model.state_dict() for alias, model in models.items()})
    target = network(9)
    for alias, model in models.items():
        row = sources.state_dict(sources.vectors[sources.aliases.index(alias)].copy())
        assert list(row) == list(model.state_dict())
        target.load_state_dict(row)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(target.state_dict()[name], tensor, rtol=0, atol=0)


def test_whole_numbers_are_copied_from_the_first_source() -> None:
    one, two = network(0).state_dict(), network(1).state_dict()
    one["1.num_batches_tracked"] += 5
    sources = StateDicts({"one": one, "two": two})
    made = sources.state_dict(sources.vectors.mean(axis=0))
    assert made["1.num_batches_tracked"] == 5
    made["1.num_batches_tracked"] += 1
    assert one["1.num_batches_tracked"] == 5
    assert sources.state_dict(sources.vectors.mean(axis=0))["1.num_batches_tracked"] == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_those_of_the_first_source(dtype: torch.dtype) -> None:
    one, two = network(0, dtype).state_dict(), network(1).state_dict()
    sources = StateDicts({"one": one, "two": two})
    assert sources.vectors.dtype == np.float32
    made = sources.state_dict(sources.vectors[0].copy())
    assert {tensor.dtype for tensor in made.values()} == {dtype, torch.int64}
    torch.testing.assert_close(made["0.weight"], one["0.weight"], rtol=1e-6, atol=0)


def test_sources_are_left_alone() -> None:
    one, two = network(0).state_dict(), network(1).state_dict()
    before = {name: tensor.clone() for name, tensor in one.items()}
    sources = StateDicts({"one": one, "two": two})
    sources.state_dict(sources.vectors[0].copy())["0.weight"].zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sources.state_dict(sources.vectors[0])["0.weight"].zero_()
    assert all(torch.equal(one[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(sources.state_dict(sources.vectors[0])["0.weight"], before["0.weight"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_count_once_and_stay_tied() -> None:
    sources = StateDicts({"one": Tied().state_dict(), "two": Tied().state_dict()})
    assert sources.vectors.shape == (2, 15)
    made = sources.state_dict(sources.vectors.mean(axis=0))
    assert made["head.weight"].data_ptr() == made["embed.weight"].data_ptr()


def test_weights_that_only_some_sources_tie_are_merged_apart() -> None:
    apart = Tied()
    apart.head.weight = nn.Parameter(torch.ones(5, 3))
    sources = StateDicts({"one": Tied().state_dict(), "two": apart.state_dict()})
    assert sources.vectors.shape == (2, 30)


def test_the_content_hash_is_of_names_shapes_and_weights() -> None:
    def digest(**tensors: Tensor) -> str:
        return StateDicts({"one": tensors, "two": tensors}).content_hash("one")

    usual = digest(a=torch.ones(2, 3))
    assert digest(a=torch.ones(2, 3)) == usual
    assert len({usual, digest(b=torch.ones(2, 3)), digest(a=torch.ones(3, 2)), digest(a=torch.zeros(2, 3))}) == 4


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_and_state_dicts_are_inverse(shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = {f"t{index}": torch.randn(shape, generator=generator) for index, shape in enumerate(shapes)}
    one["last"] = torch.randn(1, generator=generator)
    sources = StateDicts({"one": one, "two": {name: tensor + 1 for name, tensor in one.items()}})
    made = sources.state_dict(sources.vectors[0].copy())
    assert all(torch.equal(made[name], tensor) for name, tensor in one.items())


GOOD = {"weight": torch.ones(2, 3), "steps": torch.tensor(1)}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"one": GOOD}, "at least two, by alias, got 1"),
        ([GOOD, GOOD], "at least two, by alias"),
        ({"one": GOOD, "my model": GOOD}, "the alias 'my model' may hold"),
        ({"one": GOOD, "two": nn.Linear(3, 2)}, r"sources.two: expected a state dict, got a Linear; pass"),
        ({"one": GOOD, "two": {**GOOD, "weight": [1.0]}}, "'weight': expected a tensor, got list"),
        ({"one": GOOD, "two": {"weight": torch.ones(2, 3)}}, "sources.two: it lacks the tensor 'steps' of 'one'"),
        ({"one": GOOD, "two": {**GOOD, "weights": torch.ones(1)}}, "did you mean 'weight'"),
        ({"one": GOOD, "two": {**GOOD, "weight": torch.ones(3, 2)}}, r"shape \(3, 2\) here and \(2, 3\) in 'one'"),
        ({"one": GOOD, "two": {**GOOD, "weight": torch.ones(2, 3, dtype=torch.int64)}}, "int64 here and torch.float32"),
        (
            {"one": GOOD, "two": {**GOOD, "weight": torch.full((2, 3), torch.nan)}},
            "sources.two: tensor 'weight' has NaN",
        ),
        ({"one": {"steps": torch.tensor(1)}, "two": {"steps": torch.tensor(1)}}, "no floating-point weights"),
        ({"one": {"w": torch.ones(2).to_sparse()}, "two": {"w": torch.ones(2)}}, "not a dense tensor"),
        ({"one": {"w": torch.ones(2, dtype=torch.complex64)}, "two": {"w": torch.ones(2)}}, "real numbers"),
        ({"one": {"w": torch.ones(2, device="meta")}, "two": {"w": torch.ones(2)}}, "not a dense tensor"),
    ],
)
def test_sources_that_cannot_be_merged_are_refused_in_one_sentence(sources: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        StateDicts(sources)
    assert "\n" not in str(caught.value)
