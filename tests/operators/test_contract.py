"""Every merge method keeps the contract, under its defaults and under each of its choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from evomerge.operators import get, specs
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.weighted import task_arithmetic
from evomerge.operators.metadata import Resolved
from evomerge.testing.operators import OperatorCase, OperatorContract

CASES = [
    *(OperatorCase(spec=spec) for spec in specs()),
    OperatorCase(
        spec=get("linear"),
        settings={"normalize": False},
        lacks=("translation", "identical", "idempotent"),
    ),
    OperatorCase(spec=get("task_arithmetic"), settings={"normalize": True}),
    OperatorCase(spec=get("slerp"), settings={"t": 0.3}),
    OperatorCase(spec=get("nuslerp"), settings={"scope": "row"}),
    OperatorCase(spec=get("task_nuslerp"), settings={"scope": "column"}),
    OperatorCase(spec=get("multislerp"), settings={"normalize": False}, lacks=("idempotent", "identical")),
    OperatorCase(spec=get("ties"), settings={"scope": "row"}),
    OperatorCase(spec=get("ties"), settings={"scope": "global"}),
    OperatorCase(spec=get("ties"), settings={"normalize": False}),
    OperatorCase(spec=get("ties"), settings={"zero_sign": "positive"}),
    OperatorCase(spec=get("ties"), settings={"zero_sign": "negative"}),
    OperatorCase(spec=get("dare_linear"), settings={"rescale": "l1"}),
    OperatorCase(spec=get("dare_linear"), settings={"normalize": True, "rescale": "none"}),
    OperatorCase(spec=get("dare_ties"), settings={"normalize": True}),
    OperatorCase(spec=get("dare_ties"), settings={"rescale": "l1"}),
    OperatorCase(spec=get("breadcrumbs"), settings={"scope": "row", "density": 0.5, "top": 0.2}),
    OperatorCase(spec=get("breadcrumbs_ties"), settings={"density": 0.5, "top": 0.2}),
    OperatorCase(spec=get("della_linear"), settings={"rescale": "l1"}),
    OperatorCase(spec=get("della"), settings={"epsilon": 0.3, "density": 0.3}),
    OperatorCase(spec=get("tsv_m"), settings={"rank": 0.5, "others": "base"}, lacks=("single",)),
    OperatorCase(spec=get("iso_cts"), settings={"common": 0.0}),
    OperatorCase(spec=get("knots"), settings={"inner": "linear", "normalize": False}),
    OperatorCase(spec=get("knots"), settings={"zero_sign": "positive", "density": 1.0}),
    OperatorCase(spec=get("knots_dare"), settings={"inner": "linear", "rescale": "l1"}),
    OperatorCase(spec=get("knots_dare"), settings={"normalize": False, "rescale": "none", "others": "base"}),
    OperatorCase(spec=get("swudi"), settings={"start": "mean", "time": 3.0}),
    OperatorCase(spec=get("optmerge"), settings={"start": "zero", "centre": False, "others": "mean"}),
    OperatorCase(spec=get("opcm"), settings={"share": 1.0}),
    OperatorCase(spec=get("opcm"), settings={"scope": "global"}),
    OperatorCase(spec=get("doge"), settings={"scope": "global", "steps": 10}),
    OperatorCase(spec=get("fisher"), settings={"normalize": False, "floor": 0.0, "importance": "adam"}),
    OperatorCase(spec=get("regmean"), settings={"alpha": 0.0}),
    OperatorCase(spec=get("regmean"), settings={"alpha": 1.0}),
    OperatorCase(spec=get("ota"), settings={"scope": "tensor", "importance": "fisher"}),
    OperatorCase(spec=get("ota"), settings={"density": 1.0, "normalize": True, "power": 0.0}),
    OperatorCase(spec=get("mwa"), settings={"weighting": "loss_exponential", "sharpness": 2.0}),
    OperatorCase(spec=get("mwa"), settings={"weighting": "step_power"}),
    OperatorCase(spec=get("model_stock"), settings={"scope": "row"}),
    OperatorCase(spec=get("model_stock"), settings={"clip": False}),
    OperatorCase(spec=get("nearswap"), settings={"t": 0.5}),
    OperatorCase(spec=get("ram"), settings={"epsilon": 0.5}),
    OperatorCase(spec=get("ramplus"), settings={"epsilon": 0.5, "r": 1.0}),
    OperatorCase(spec=get("consensus"), settings={"k": 0}),
    OperatorCase(spec=get("consensus"), settings={"k": 1}),
    OperatorCase(spec=get("varm"), settings={"scope": "element"}),
    OperatorCase(spec=get("varm"), settings={"statistic": "abs", "power": 2.0}),
    OperatorCase(spec=get("sce"), settings={"density": 0.3}),
    OperatorCase(spec=get("sce"), settings={"density": 0.3, "mask_scope": "coefficient"}),
    OperatorCase(spec=get("pcb"), settings={"density": 0.5, "gain": 1.0}),
    OperatorCase(spec=get("pcb"), settings={"scope": "global"}),
    OperatorCase(spec=get("widen"), settings={"ties": "position", "t": 0.5}),
]


def label(case: OperatorCase) -> str:
    return "-".join([case.spec.name, *(f"{key}={value}" for key, value in case.settings.items())])


class TestBuiltIn(OperatorContract):
    @pytest.fixture(params=CASES, ids=label)
    def case(self, request: pytest.FixtureRequest) -> OperatorCase:
        return request.param  # type: ignore[no-any-return]


def writes(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    tensors[0].mul_(2)
    return task_arithmetic(tensors, base, params, context)


def aliases(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    return tensors[0]


def counts_idle_sources(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    assert base is not None
    return base + (task_arithmetic(tensors, base, params, context) - base) / len(tensors)


def draws_from_torch(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    return task_arithmetic(tensors, base, params, context) + torch.rand(tensors[0].shape)


def looks_around(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    result = task_arithmetic(tensors, base, params, context)
    return result - result.mean() if result.numel() else result


@pytest.mark.parametrize(
    ("kernel", "law"),
    [
        (writes, "test_inputs_are_neither_changed_nor_returned"),
        (aliases, "test_inputs_are_neither_changed_nor_returned"),
        (aliases, "test_permutation"),
        (counts_idle_sources, "test_neutral_weight"),
        (draws_from_torch, "test_repeats_bit_for_bit"),
        (draws_from_torch, "test_only_random_methods_depend_on_seed_and_name"),
        (looks_around, "test_a_part_depends_on_its_region_alone"),
        (looks_around, "test_idempotent"),
    ],
)
def test_the_contract_catches_a_faulty_kernel(kernel: object, law: str) -> None:
    name = getattr(kernel, "__name__", "")
    spec = dataclasses.replace(get("task_arithmetic"), kernel=f"{__name__}:{name}")
    with pytest.raises(AssertionError):
        getattr(OperatorContract(), law)(OperatorCase(spec=spec))
