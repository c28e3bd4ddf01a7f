"""From a plan to tensors: one at a time, computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import InfeasibleError
from evomerge.merging.plan import MergePlan, PlannedTensor, Step
from evomerge.merging.segments import Stretch
from evomerge.operators.kernels.context import Context
from evomerge.operators.noise import noise

NOISE_SPAN = 1 << 20
"""Noise is made for so many weights at a time, in float64."""


def materialise(
    plan: MergePlan, device: str = "cpu", *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Make the tensors of a merged model, one after the other, in canonical order.

    No more than the inputs of one tensor are in memory at a time (beside resident sources).

    Args:
        plan: from `plan`.
        device: where the arithmetic is done, and where the tensors are.
        dtype: what results are rounded to; None: the dtype of the plan. float64 shows the fold of a scaled stream
            without rounding (blends are float32 in any case).

    Yields:
        (name, tensor). A tensor may be a view of a source: it must not be changed.

    Raises:
        SourceError: when a source has NaN or infinite values, naming it and the tensor.
        InfeasibleError: when the blend of finite tensors is not finite, or does not fit the recipe's dtype.
    """
    for planned in plan.tensors:
        yield planned.name, make_tensor(plan, planned, device, dtype=dtype)


def make_tensor(
    plan: MergePlan, planned: PlannedTensor, device: str = "cpu", *, dtype: torch.dtype | None = None
) -> Tensor:
    """Make one tensor of a plan; as `materialise` does.

    Raises:
        SourceError: when a source has NaN or infinite values.
        InfeasibleError: when the blend is not finite.
    """
    if planned.copied_from is not None and is_buffer(planned.name, planned.info):
        result = plan.sources.stored(planned.copied_from, planned.name_in(planned.copied_from)).to(device)
    else:
        dtype = planned.info.dtype if dtype is None else dtype
        if planned.rescale is None:
            result = _computed(plan, planned, device, dtype).to(dtype)
        else:
            result = planned.rescale(_computed(plan, planned, device, torch.float32).float()).to(dtype)
    if not is_finite(result):
        raise InfeasibleError(
            f"tensor {planned.name!r} of the merge has NaN or infinite values in {plan.recipe.dtype}; "
            f"use smaller weights or `dtype: float32`"
        )
    return result


def _computed(plan: MergePlan, planned: PlannedTensor, device: str, dtype: torch.dtype) -> Tensor:
    """Return the tensor in `dtype`, or in what it is stored as where it is a copy, or in float32."""
    if planned.stretches:
        return _in_stretches(plan, planned, device)
    if planned.step is None:
        return _copy(plan, planned, device)
    return _blend(plan, planned, planned.step, device, dtype)


def _in_stretches(plan: MergePlan, planned: PlannedTensor, device: str) -> Tensor:
    """Make a tensor stretch by stretch, each with its own blend; noise is summed in float64."""
    read: dict[str, Tensor] = {}

    def flat(alias: str, stretch: Stretch) -> Tensor:
        if alias not in read:
            read[alias] = plan.sources.working(alias, planned.name_in(alias), device).float().reshape(-1)
        return read[alias][stretch.start : stretch.stop]

    result = torch.empty(planned.info.num_elements, dtype=torch.float32, device=device)
    for stretch in planned.stretches:
        made = result[stretch.start : stretch.stop]
        if stretch.copied_from is not None:
            made.copy_(flat(stretch.copied_from, stretch))
        elif stretch.step is not None:
            blend = stretch.step.blend
            base = None if blend.base is None else flat(blend.base, stretch)
            context = Context(name=planned.name, source_ids=stretch.step.source_ids, seed=plan.recipe.seed)
            tensors = [flat(alias, stretch) for alias in blend.sources]
            made.copy_(stretch.step.kernel(tensors, base, blend.params, context))
        for start in range(0, len(made) if stretch.noise else 0, NOISE_SPAN):
            some = made[start : start + NOISE_SPAN]
            some += torch.from_numpy(_noise(stretch, start, len(some))).to(device)
    return result.view(planned.info.shape)


def _noise(stretch: Stretch, start: int, length: int) -> NDArray[np.float32]:
    first = stretch.place + start
    total = np.zeros(length)
    for seed, scale in sorted(stretch.noise.items()):
        total += scale * noise(seed, first, first + length)
    return total.astype(np.float32)


def _copy(plan: MergePlan, planned: PlannedTensor, device: str) -> Tensor:
    if planned.copied_from is None:
        raise ValueError(f"tensor {planned.name!r} is planned neither as a blend nor as a copy")
    return plan.sources.working(planned.copied_from, planned.name_in(planned.copied_from), device)


def _blend(plan: MergePlan, planned: PlannedTensor, step: Step, device: str, dtype: torch.dtype) -> Tensor:
    sources, blend = plan.sources, step.blend
    tensors = [sources.working(alias, planned.name_in(alias), device) for alias in blend.sources]
    base = None if blend.base is None else sources.working(blend.base, planned.name_in(blend.base), device)
    aliases = blend.sources if blend.base is None else (*blend.sources, blend.base)
    inputs = tuple((alias, planned.name_in(alias)) for alias in aliases)
    context = Context(
        name=planned.name,
        source_ids=step.source_ids,
        seed=plan.recipe.seed,
        dtype=dtype,
        threshold=_threshold(plan, step),
        kept=plan.sources.statistics.keeper(inputs),
    )
    return step.kernel(tensors, base, blend.params, context)


def _threshold(plan: MergePlan, step: Step) -> Callable[[int, float], float] | None:
    base, aliases = step.blend.base, step.blend.sources
    if base is None:
        return None
    return lambda index, density: plan.sources.statistics.threshold(aliases[index], base, density)
