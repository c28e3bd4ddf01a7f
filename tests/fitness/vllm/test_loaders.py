"""What loaders do with tensors, as it is seen: which part they use, and where they copy it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evomerge.fitness.vllm.loaders import LoaderWatch, Place
from evomerge.fitness.vllm.windows import Window

SHAPE = (6, 4)
Loader = Callable[[Tensor, Tensor], object]
"""(parameter, tensor) to nothing."""


def window(use: Any) -> Window | None:
    """Return what a watch says of a tensor that is used so."""
    tensor = torch.zeros(SHAPE)
    with LoaderWatch() as watch:
        watch.watch("name", tensor)
        use(tensor)
    return watch.windows().get("name")


def test_one_cut_is_a_window() -> None:
    assert window(lambda tensor: torch.empty(2, 4).copy_(tensor.narrow(0, 2, 2))) == (0, 2, 2)
    assert window(lambda tensor: tensor.narrow(dim=1, start=0, length=3)) == (1, 0, 3)
    assert window(lambda tensor: (tensor.shape, tensor.size(0), tensor.dtype, tensor.narrow(0, 0, 3))) == (0, 0, 3)


def test_what_is_done_while_the_watch_rests_does_not_count() -> None:
    tensor = torch.zeros(SHAPE)
    with LoaderWatch() as watch:
        watch.watch("name", tensor)
        tensor.narrow(0, 0, 2)
        watch.rest()
        tensor.sum()
    assert watch.windows() == {"name": (0, 0, 2)}


def test_a_tensor_that_was_held_back_is_seen_when_it_is_used() -> None:
    """Loaders collect the tensors of a module and use them when they have all."""
    held, last = torch.zeros(SHAPE), torch.zeros(SHAPE)
    with LoaderWatch() as watch:
        watch.watch("held", held)
        watch.rest()
        watch.watch("last", last)
        held.narrow(0, 0, 2)
        last.narrow(0, 2, 2)
    assert watch.windows() == {"held": (0, 0, 2), "last": (0, 2, 2)}


@pytest.mark.parametrize(
    "use",
    [
        lambda tensor: torch.empty(SHAPE).copy_(tensor),
        lambda tensor: tensor.narrow(0, 0, 6),
        lambda tensor: (tensor.narrow(0, 0, 2), tensor.narrow(0, 2, 2)),
        lambda tensor: (tensor.narrow(0, 0, 2), tensor.sum()),
        lambda tensor: tensor.t().narrow(0, 0, 2),
        lambda tensor: tensor.data.narrow(0, 0, 2),
        lambda tensor: tensor[:2],
        lambda tensor: None,
    ],
)
def test_any_other_use_needs_the_whole_tensor(use: Any) -> None:
    assert window(use) is None


def place(*loads: Loader, shape: tuple[int, ...] = (10, 4), device: str = "meta") -> Place | None:
    """Return what a watch says of a tensor that is loaded into a parameter so."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape, device=device), requires_grad=False)
    tensor = torch.zeros(SHAPE)
    with LoaderWatch() as watch:
        watch.begin(model)
        watch.watch("name", tensor)
        for load in loads:
            load(model.weight, tensor)
    assert watch.parameters["weight"].shape == shape
    return watch.places().get("name")


def fused(param: Tensor, tensor: Tensor) -> None:
    param.data.narrow(0, 4, 6).copy_(tensor)


def cut(param: Tensor, tensor: Tensor) -> None:
    param.data.narrow(0, 4, 3).copy_(tensor.narrow(0, 3, 3))


def pad(param: Tensor, tensor: Tensor) -> None:
    param.data[:4].fill_(0)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_copy_has_a_place(device: str) -> None:
    """Beside other tensors, made twice as of a bias, beside padding, cut to what a rank needs."""
    assert place(nn.Parameter.copy_, shape=SHAPE, device=device) == Place("weight", 0, SHAPE)
    assert place(fused, device=device) == Place("weight", 16, SHAPE)
    assert place(fused, fused, device=device) == Place("weight", 16, SHAPE)
    assert place(fused, pad, device=device) == Place("weight", 16, SHAPE)
    assert place(fused, lambda param, tensor: param.copy_(param.data), device=device) == Place("weight", 16, SHAPE)
    assert place(cut, device=device) == Place("weight", 16, (3, 4))


@pytest.mark.parametrize(
    "load",
    [
        lambda param, tensor: None,
        lambda param, tensor: param.data.narrow(0, 0, 6).copy_(tensor + 1),
        lambda param, tensor: param.data.narrow(0, 0, 6).copy_(tensor.clone()),
        lambda param, tensor: param.data.narrow(0, 0, 6).copy_(tensor).mul_(2),
        lambda param, tensor: (fused(param, tensor), param.data.fill_(0)),
        lambda param, tensor: (fused(param, tensor), param.data.neg_()),
        lambda param, tensor: (fused(param, tensor), param.data.narrow(0, 0, 6).copy_(tensor)),
        lambda param, tensor: param.data.__setitem__(slice(0, 6), tensor),
        lambda param, tensor: param.data.view(4, 10).t().narrow(0, 0, 6).copy_(tensor),
        lambda param, tensor: param.data.narrow(0, 0, 6).copy_(tensor[:1]),
        lambda param, tensor: (
            param.data.narrow(0, 0, 3).copy_(tensor.narrow(0, 0, 3)),
            param.data.narrow(0, 3, 3).copy_(tensor.narrow(0, 3, 3)),
        ),
    ],
    ids=["nothing", "changed", "cloned", "scaled", "filled", "negated", "twice", "item", "turned", "one row", "halves"],
)
def test_what_is_more_than_one_copy_has_no_place(load: Loader) -> None:
    assert place(load) is None


def test_memory_that_is_no_parameter_of_the_model_is_no_place() -> None:
    assert place(lambda param, tensor: torch.empty(SHAPE).copy_(tensor)) is None
