"""From a plan to tensors: one at a time, computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from evomerge.checkpoints import is_buffer, is_finite
from evomerge.errors import InfeasibleError
from evomerge.merging.plan import MergePlan, PlannedTensor, Step
from evomerge.operators.kernels.context import Context


def materialise(plan: MergePlan, device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Make the tensors of a merged model, one after the other, in canonical order.

    No more than the inputs of one tensor are in memory at a time (beside resident sources).

    Args:
        plan: from `plan`.
        device: where the arithmetic is done, and where the tensors are.

    Yields:
        (name, tensor) in the dtype of the plan. A tensor may be a view of a source: it must not be changed.

    Raises:
        SourceError: when a source has NaN or infinite values, naming it and the tensor.
        InfeasibleError: when the blend of finite tensors is not finite, or does not fit the recipe's dtype.
    """
    for planned in plan.tensors:
        yield planned.name, make_tensor(plan, planned, device)


def make_tensor(plan: MergePlan, planned: PlannedTensor, device: str = "cpu") -> Tensor:
    """Make one tensor of a plan; as `materialise` does.

    Raises:
        SourceError: when a source has NaN or infinite values.
        InfeasibleError: when the blend is not finite.
    """
    if planned.step is None:
        result = _copy(plan, planned, device)
    else:
        result = _blend(plan, planned.step, planned.name, device).to(planned.info.dtype)
    if not is_finite(result):
        raise InfeasibleError(
            f"tensor {planned.name!r} of the merge has NaN or infinite values in {plan.recipe.dtype}; "
            f"use smaller weights or `dtype: float32`"
        )
    return result


def _copy(plan: MergePlan, planned: PlannedTensor, device: str) -> Tensor:
    if planned.copied_from is None:
        raise ValueError(f"tensor {planned.name!r} is planned neither as a blend nor as a copy")
    if is_buffer(planned.name, planned.info):
        return plan.sources.stored(planned.copied_from, planned.name).to(device)
    return plan.sources.working(planned.copied_from, planned.name, device).to(planned.info.dtype)


def _blend(plan: MergePlan, step: Step, name: str, device: str) -> Tensor:
    sources, blend = plan.sources, step.blend
    tensors = [sources.working(alias, name, device) for alias in blend.sources]
    base = None if blend.base is None else sources.working(blend.base, name, device)
    context = Context(name=name, source_ids=step.source_ids, seed=plan.recipe.seed, threshold=_threshold(plan, step))
    return step.kernel(tensors, base, blend.params, context)


def _threshold(plan: MergePlan, step: Step) -> Callable[[int, float], float] | None:
    base, aliases = step.blend.base, step.blend.sources
    if base is None:
        return None
    return lambda index, density: plan.sources.statistics.threshold(aliases[index], base, density)
