"""From a recipe and its sources to a list of tensors, each with the blend that makes it. Reads no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evomerge import operators
from evomerge.checkpoints import Place, TensorInfo, is_buffer
from evomerge.errors import RecipeError
from evomerge.merging.sources import Sources
from evomerge.merging.unbuilt import refuse_routes, refuse_unbuilt
from evomerge.operators.kernels.context import Kernel
from evomerge.operators.kernels.inputs import SMALLEST_SUM
from evomerge.recipe import Blend, ExpandedRecipe, Recipe, expand

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""How a recipe names the dtypes of merged weights."""


@dataclass(frozen=True, slots=True)
class Step:
    """A blend, ready to be run for any tensor."""

    blend: Blend
    """Without the sources of weight 0."""
    kernel: Kernel
    source_ids: tuple[str, ...]
    """Content hashes, aligned with `blend.sources`."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the merged model: either a step makes it, or one source has it as it is."""

    name: str
    info: TensorInfo
    """As it is written."""
    step: Step | None
    copied_from: str | None
    """Alias of the source, where it is a copy."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """How to make every tensor of a merged model, in canonical order."""

    recipe: Recipe
    sources: Sources
    tensors: tuple[PlannedTensor, ...]

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Shape and dtype of every tensor, in order."""
        return {planned.name: planned.info for planned in self.tensors}

    @property
    def num_bytes(self) -> int:
        """Size of the merged weights in bytes."""
        return sum(planned.info.num_bytes for planned in self.tensors)


def plan(recipe: Recipe, sources: Sources) -> MergePlan:
    """Plan a merge over opened sources; cheap enough for every candidate of a search.

    A tensor of a layer has the blend of that layer and module; embeddings and head have their own. What is
    none of these (such as a vision tower) blends as the embeddings do. Buffers (integers, booleans, rotary
    frequencies) are never merged: they are the base's. A blend that comes to a single source of weight 1 is a
    copy, bit by bit.

    Args:
        recipe: over the same sources as were opened (all or some of them).
        sources: from `open_sources`.

    Raises:
        NotBuiltError: for what this version cannot build, with its key path.
        RecipeError: when the recipe does not fit the sources.
    """
    refuse_unbuilt(recipe)
    for alias, config in recipe.sources.items():
        if sources.configs.get(alias) != config:
            raise RecipeError(
                f"sources.{alias}: this is not the source that was opened under that alias; open it first"
            )
    reference = sources.models[sources.reference]
    expanded = expand(recipe, sources.num_layers)
    refuse_routes(expanded, reference.layout.num_layers)
    dtype = DTYPES[recipe.dtype]
    steps: dict[int, tuple[Step | None, str | None]] = {}
    tensors = []
    for name in reference.names():
        info = reference.info(name)
        if is_buffer(name, info):
            tensors.append(PlannedTensor(name, info, None, sources.reference))
            continue
        blend = _blend_at(expanded, reference.layout.place(name))
        if id(blend) not in steps:
            steps[id(blend)] = _prepare(blend, sources)
        step, copied_from = steps[id(blend)]
        tensors.append(PlannedTensor(name, TensorInfo(info.shape, dtype), step, copied_from))
    return MergePlan(recipe, sources, tuple(tensors))


def _blend_at(expanded: ExpandedRecipe, place: Place) -> Blend:
    if place.layer is None:
        return expanded.head if place.module == "head" else expanded.embeddings
    blends = expanded.layers[place.layer].blends
    if place.module == "attention":
        return blends["attention"]
    return blends["mlp"] if place.module == "mlp" else blends["other"]


def _prepare(blend: Blend, sources: Sources) -> tuple[Step | None, str | None]:
    blend = _without_idle(blend)
    copied_from = _copied(blend)
    if copied_from is not None:
        return None, copied_from
    kernel = operators.load(operators.get(blend.method))
    return Step(blend, kernel, tuple(sources.infos[alias].content_hash for alias in blend.sources)), None


def _without_idle(blend: Blend) -> Blend:
    """Drop sources of weight 0, which take no part: their tensors need not be read."""
    weights = blend.params.get("weight")
    if not isinstance(weights, tuple) or all(weights) or not any(weights):
        return blend
    kept = [index for index, weight in enumerate(weights) if weight]
    params = {
        name: tuple(value[index] for index in kept) if isinstance(value, tuple) else value
        for name, value in blend.params.items()
    }
    return Blend(blend.method, tuple(blend.sources[index] for index in kept), blend.base, params)


def _copied(blend: Blend) -> str | None:
    """Return the source that a blend comes to: base + (source - base) would not give it to the last bit."""
    spec = operators.get(blend.method)
    weights = blend.params.get("weight")
    if not isinstance(weights, tuple):
        return None
    if not any(weights):
        return blend.base
    others = {name: value for name, value in blend.params.items() if name not in ("weight", "normalize")}
    plain = all(value == _everywhere(spec, name, value) for name, value in others.items())
    if len(weights) > 1 or "single" not in spec.invariants or not plain:
        return None
    whole = weights[0] == 1.0
    if blend.params.get("normalize") is True:
        whole = abs(float(weights[0])) >= SMALLEST_SUM
    return blend.sources[0] if whole else None


def _everywhere(spec: operators.OperatorSpec, name: str, like: operators.Resolved) -> operators.Resolved:
    default = spec.parameter(name).default
    return (default,) * len(like) if isinstance(like, tuple) else default
