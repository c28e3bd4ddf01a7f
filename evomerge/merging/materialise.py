"""From a plan to tensors: one at a time, computed in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge import operators
from evomerge.checkpoints import is_buffer, is_finite, parameter_names
from evomerge.errors import InfeasibleError
from evomerge.merging.lines import drawn_in, norms, suggested
from evomerge.merging.low_rank import low_rank
from evomerge.merging.plan import MergePlan, PlannedTensor, Step
from evomerge.merging.plan import plan as plan_merge
from evomerge.merging.segments import Stretch
from evomerge.merging.sources import Sources
from evomerge.merging.threads import MOST_THREADS, in_order
from evomerge.operators.kernels.context import Arguments, Context, Empty, Model, OfModel, Statistic, Tensors
from evomerge.operators.metadata import Resolved, StatisticKind
from evomerge.operators.noise import noise
from evomerge.recipe import Blend, Lines

_LARGE = 1 << 26
"""Bytes of a model from which threads are worth their start."""
_TRANSPARENT = frozenset({"linear", "task_arithmetic", "ties"})
NOISE_SPAN = 1 << 20
"""Noise is made for so many weights at a time, in float64."""


def materialise(
    plan: MergePlan, device: str = "cpu", *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Make the tensors of a merged model, one after the other, in canonical order.

    On a CPU several tensors of a large model are made at a time, by as many threads as PyTorch uses. No more than
    these tensors' inputs and results, and one more result, are in memory at a time (beside resident sources).

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
    if plan.recipe.lines is not None:
        for lines in (planned.step.blend.lines for planned in plan.tensors if planned.step is not None):
            if lines is not None:
                share_of(plan, lines, device)  # α of the whole model, here with all threads
                break

    def made(planned: PlannedTensor) -> tuple[str, Tensor]:
        return planned.name, make_tensor(plan, planned, device, dtype=dtype)

    yield from in_order(made, plan.tensors, threads_for(plan, device))


def threads_for(plan: MergePlan, device: str) -> int:
    """Return how many tensors of a merge are best made at a time: on a CPU, and of a large model, several."""
    if torch.device(device).type != "cpu" or plan.num_bytes < _LARGE:
        return 1
    return min(torch.get_num_threads(), MOST_THREADS)


def make_tensor(
    plan: MergePlan,
    planned: PlannedTensor,
    device: str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Make one tensor of a plan; as `materialise` does.

    Args:
        plan: from `plan`.
        planned: one of its tensors.
        device: where the arithmetic is done, and where the tensor is.
        dtype: as in `materialise`.
        out: contiguous memory of the result's shape on the device, which is filled and returned; a result of another
            dtype is rounded to its dtype, unchecked. What is in it after an error is not defined. None: new memory.

    Raises:
        SourceError: when a source has NaN or infinite values.
        InfeasibleError: when the blend is not finite.
    """
    seen: list[bool] = []  # something, where a kernel has seen that the result is finite
    if planned.copied_from is not None and is_buffer(planned.name, planned.info):
        result = plan.sources.stored(planned.copied_from, planned.name_in(planned.copied_from)).to(device)
    else:
        dtype = planned.info.dtype if dtype is None else dtype
        if planned.rescale is None:
            result = _computed(plan, planned, device, dtype, lambda: seen.append(True), out).to(dtype)
        else:
            result = planned.rescale(_computed(plan, planned, device, torch.float32).float()).to(dtype)
    if not (seen or is_finite(result)):
        if planned.step is not None:
            for alias in _inputs(planned.step.blend):
                plan.sources.working(alias, planned.name_in(alias))
        raise InfeasibleError(
            f"tensor {planned.name!r} of the merge has NaN or infinite values in {plan.recipe.dtype}; "
            f"use smaller weights or `dtype: float32`"
        )
    if out is None or result.data_ptr() == out.data_ptr():
        return result
    return out.copy_(result)


def _computed(
    plan: MergePlan,
    planned: PlannedTensor,
    device: str,
    dtype: torch.dtype,
    finite: Callable[[], None] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the tensor in `dtype`, or in what it is stored as where it is a copy, or in float32.

    `finite` is called where it is seen meanwhile that all of it is finite; `out` is used where it serves.
    """
    if planned.stretches:
        return _in_stretches(plan, planned, device)
    if planned.step is None:
        return _copy(plan, planned, device)
    return _blend(plan, planned, planned.step, device, dtype, finite, out)


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
            context = Context(
                name=planned.name,
                source_ids=stretch.step.source_ids,
                seed=plan.recipe.seed,
                statistic=_statistic(plan, planned, stretch.step, device, stretch),
            )
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


def _blend(
    plan: MergePlan,
    planned: PlannedTensor,
    step: Step,
    device: str,
    dtype: torch.dtype,
    finite: Callable[[], None] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    sources, blend = plan.sources, step.blend
    if blend.lines is not None:
        plain = replace(step, blend=replace(blend, lines=None))
        merged = _blend(plan, planned, plain, device, torch.float32)
        root = sources.working(blend.lines.base, planned.name_in(blend.lines.base), device)
        return drawn_in(merged, root, share_of(plan, blend.lines, device), dtype)
    tensors, base, context = _arguments(plan, planned, step, device, dtype)
    if out is not None:
        context = replace(context, empty=_first(out, context.empty))
    return step.kernel(tensors, base, blend.params, replace(context, finite=finite))


def _first(out: Tensor, empty: Empty) -> Empty:
    """Return what gives out a tensor's memory to the first who asks for such a vector, and then what `empty` does."""
    left = [out]

    def given(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        fits = left and (length, dtype, device) == (out.numel(), out.dtype, out.device)
        return left.pop().view(-1) if fits else empty(length, dtype, device)

    return given


def _arguments(plan: MergePlan, planned: PlannedTensor, step: Step, device: str, dtype: torch.dtype) -> Arguments:
    """Return what the kernel of a step gets of a tensor."""
    sources, blend = plan.sources, step.blend
    inputs = tuple((alias, planned.name_in(alias)) for alias in _inputs(blend))
    checked = not is_transparent(blend.method, blend.params)
    tensors = [sources.working(alias, name, device, checked=checked) for alias, name in inputs]
    base = None if blend.base is None else tensors.pop()
    context = Context(
        name=planned.name,
        source_ids=step.source_ids,
        seed=plan.recipe.seed,
        dtype=dtype,
        empty=sources.results.empty,
        is_vocabulary=sources.is_vocabulary(blend.sources[0], planned.name_in(blend.sources[0])),
        inputs_first=sources.inputs_first(blend.sources[0], planned.name_in(blend.sources[0])),
        low_rank=low_rank(sources, blend, planned, device),
        threshold=_threshold(plan, step),
        of_model=_of_model(plan, step, device),
        statistic=_statistic(plan, planned, step, device),
        kept=sources.statistics.keeper.in_memory(inputs),
        filed=sources.statistics.keeper.in_files(inputs, device),
    )
    return tensors, base, context


def _inputs(blend: Blend) -> tuple[str, ...]:
    """Return the aliases that a blend reads, the base last."""
    return blend.sources if blend.base is None else (*blend.sources, blend.base)


def is_transparent(method: str, params: Mapping[str, Resolved]) -> bool:
    """Tell whether NaN and infinity in any input come through to the result, so that looking at that one is enough."""
    weights = params.get("weight")
    if method not in _TRANSPARENT or not isinstance(weights, tuple):
        return False
    return params.get("scale", 1.0) != 0 and all(weight != 0 for weight in weights)


def share_of(plan: MergePlan, lines: Lines, device: str = "cpu") -> float:
    """Return s of LiNeS at a place of a merge; an α that is left to the model takes one pass over it, once a recipe."""
    if not lines.auto:
        return lines.factor

    def alpha(sources: Sources) -> float:
        # Planned anew over all of the sources: `plan` may have layers that only fill a slot, or read parts of tensors.
        return _alpha(plan_merge(plan.recipe.model_copy(update={"lines": None}), sources), lines.base, device)

    return lines.factor + plan.sources.statistics.once(lines.auto, alpha)


def _alpha(plan: MergePlan, base: str, device: str) -> float:
    """Return α (LiNeS, section 4 for several tasks) of a merge, over all tensors but buffers, tied ones once."""
    sources = plan.sources
    merged = [planned for planned in plan.tensors if not is_buffer(planned.name, planned.info)]
    taking_part = {planned.name: _taking_part(plan, planned, base) for planned in merged}

    def both(planned: PlannedTensor) -> tuple[float, float]:
        if planned.copied_from == base:
            return 0.0, 0.0
        root = sources.working(base, planned.name_in(base), device)
        tuned = [sources.working(alias, planned.name_in(alias), device) for alias in taking_part[planned.name]]
        return norms(_computed(plan, planned, device, torch.float32), root, tuned)

    count = len({alias for aliases in taking_part.values() for alias in aliases})
    return suggested(in_order(both, merged, threads_for(plan, device)), count)


def _taking_part(plan: MergePlan, planned: PlannedTensor, base: str) -> list[str]:
    """Return the sources that a tensor is made of, the base not counted, in an order that no permutation changes."""
    if planned.step is None:
        aliases = [] if planned.copied_from is None else [planned.copied_from]
    else:
        aliases = list(planned.step.blend.sources)
    return sorted(
        (alias for alias in aliases if alias != base), key=lambda alias: plan.sources.infos[alias].content_hash
    )


def _threshold(plan: MergePlan, step: Step) -> Callable[[int, float], float] | None:
    base, aliases = step.blend.base, step.blend.sources
    if base is None:
        return None
    kind = next(iter(operators.get(step.blend.method).statistics(step.blend.params)), None)
    return lambda index, density: plan.sources.statistics.threshold(aliases[index], base, density, kind)


def _of_model(plan: MergePlan, step: Step, device: str) -> OfModel | None:
    """Return how a step measures the whole model, once for all of its tensors (`Context.of_model`)."""
    base = step.blend.base
    if base is None or step.blend.params.get("scope") != "global":
        return None

    def of_model(what: str, make: Callable[[Model], Tensors]) -> Tensors:
        def compute(sources: Sources) -> Tensors:
            whole, root = replace(plan, sources=sources), sources.models[base]

            def model() -> Iterator[Arguments]:
                for name in parameter_names(root):
                    planned = PlannedTensor(name, root.info(name), step, None)
                    yield _arguments(whole, planned, step, device, torch.float32)

            return make(model)

        return plan.sources.statistics.once((what, _inputs(step.blend), device), compute)

    return of_model


def _statistic(
    plan: MergePlan, planned: PlannedTensor, step: Step, device: str, stretch: Stretch | None = None
) -> Callable[[int, StatisticKind], Statistic | None] | None:
    aliases = step.blend.sources
    if not operators.get(step.blend.method).needs:
        return None

    def statistic(index: int, kind: StatisticKind) -> Statistic | None:
        found = plan.sources.measured(aliases[index], kind, planned.name_in(aliases[index]), device)
        if found is None or stretch is None:
            return found
        return replace(found, tensor=found.tensor.reshape(-1)[stretch.start : stretch.stop])

    return statistic
