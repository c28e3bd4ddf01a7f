"""Piecewise blends, planned: which blend makes which stretch of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge import operators
from evomerge.errors import NotBuiltError
from evomerge.merging.flat import FlatTensor, flat_index, flat_parts, part_size
from evomerge.recipe import Blend, ExpandedRecipe, ExpandedSegment, Recipe, copied, simplified, written_segments
from evomerge.recipe.faults import RecipePathError

if TYPE_CHECKING:
    from evomerge.checkpoints import ModelSource
    from evomerge.merging.plan import Step


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive weights of a tensor that blend alike."""

    start: int
    stop: int
    """First weight and first one after them, in row-major order."""
    step: Step | None
    copied_from: str | None
    """As in `PlannedTensor`."""
    noise: Mapping[int, float]
    """Seed -> factor of the noise that is added."""
    place: int
    """Flat index of the first weight in the whole model, by which noise is drawn."""


Prepare = Callable[[Blend], "tuple[Step | None, str | None]"]


def plan_stretches(
    recipe: Recipe, expanded: ExpandedRecipe, model: ModelSource, prepare: Prepare
) -> dict[str, tuple[Stretch, ...]]:
    """Return the stretches of every tensor that is merged, by name.

    Args:
        recipe: with segments.
        expanded: the same in full.
        model: any of the sources: the shapes of its tensors are looked at.
        prepare: makes a step, or names what is copied.

    Raises:
        RecipeError: when the segments do not fit the model, with the key path.
        NotBuiltError: for a method that looks beyond single weights.
    """
    parts = flat_parts(flat_index(model), list(expanded.segments))
    found: dict[str, tuple[Stretch, ...]] = {}
    for name, (path, segments) in written_segments(recipe).items():
        size = part_size(parts.get(name, ()))
        what = f"chromosome {name!r}" if len(path) > 1 else "the model"
        if size == 0:
            raise RecipePathError(path, f"the model has no weights in chromosome {name!r}; leave it out")
        for index, segment in enumerate(segments):
            if segment.until is not None and segment.until >= size:
                raise RecipePathError(
                    (*path, index, "until"),
                    f"must lie below {size:,}, the number of weights of {what}, so that something is left for the "
                    f"next segment; got {segment.until:,}",
                )
    for name, tensors in parts.items():
        found |= _cut(tensors, expanded.segments[name], prepare)
    return found


def _cut(
    tensors: tuple[FlatTensor, ...], segments: tuple[ExpandedSegment, ...], prepare: Prepare
) -> dict[str, tuple[Stretch, ...]]:
    """Cut the tensors of one chromosome at the ends of its segments."""
    made = [prepare(_elementwise(segment.blend)) for segment in segments]
    ends = [part_size(tensors) if segment.until is None else segment.until for segment in segments]
    found = {}
    index = begin = 0
    for tensor in tensors:
        stretches: list[Stretch] = []
        start = 0
        while start < tensor.size or not stretches:  # a tensor without weights is one stretch too
            stop = min(tensor.size, ends[index] - begin)
            step, copied_from = made[index]
            stretches.append(Stretch(start, stop, step, copied_from, segments[index].noise, tensor.start + start))
            start = stop
            if begin + stop == ends[index] and index < len(segments) - 1:
                index += 1
        found[tensor.name] = tuple(stretches)
        begin += tensor.size
    return found


def _elementwise(blend: Blend) -> Blend:
    """Return a blend that can be computed for any stretch of a tensor by itself.

    Raises:
        NotBuiltError: for any other.
    """
    spec = operators.get(blend.method)
    if spec.scope != "element" and copied(simplified(blend)) is None:
        raise NotBuiltError(
            f"segments: method {spec.name!r} looks beyond single weights (at the whole {spec.scope}), and a segment "
            f"may end inside a tensor; use `linear` or `task_arithmetic` there, or give blends by `layers`"
        )
    return blend
