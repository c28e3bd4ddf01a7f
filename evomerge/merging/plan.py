"""From a recipe and its sources to a list of tensors, each with the blend that makes it. Reads no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge import operators
from evomerge.checkpoints import Blocks, Module, TensorInfo, is_buffer
from evomerge.errors import NotBuiltError, RecipeError
from evomerge.merging.dtypes import DTYPES
from evomerge.merging.folding import Rescale, fold_in_layer, fold_outside
from evomerge.merging.low_rank import check_adapters
from evomerge.merging.routes import Hop, Route, read_route, route_config
from evomerge.merging.segments import Stretch, plan_stretches
from evomerge.merging.sources import Sources
from evomerge.operators.kernels.context import Kernel
from evomerge.recipe import Blend, ExpandedRecipe, Recipe, blend_of, copied, expand, simplified


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
    """One tensor of the merged model: a step makes it, one source has it as it is, or it is made in stretches."""

    name: str
    info: TensorInfo
    """As it is written."""
    step: Step | None
    copied_from: str | None
    """Alias of the source, where it is a copy."""
    read: Mapping[str, str] | None = None
    """Alias -> name of the tensor in that source; None: `name` in all of them."""
    rescale: Rescale | None = None
    """What the fold of a scaled stream does to the result."""
    stretches: tuple[Stretch, ...] = ()
    """Where segments cut it or add noise, how each of its stretches is made; in order and without gaps."""

    def name_in(self, alias: str) -> str:
        """Return the name of the tensor that is read of a source."""
        return self.name if self.read is None else self.read[alias]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """How to make every tensor of a merged model, in canonical order."""

    recipe: Recipe
    sources: Sources
    expanded: ExpandedRecipe
    route: Route
    tensors: tuple[PlannedTensor, ...]

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Shape and dtype of every tensor, in order."""
        return {planned.name: planned.info for planned in self.tensors}

    @property
    def num_bytes(self) -> int:
        """Size of the merged weights in bytes."""
        return sum(planned.info.num_bytes for planned in self.tensors)

    def config(self) -> dict[str, Any]:
        """Return the merged model's `config.json`, with per-layer settings along the route.

        Raises:
            SourceError: when a configuration cannot say which layer is of which kind.
        """
        return route_config(self.recipe, self.sources, self.route)


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
    for alias, config in recipe.sources.items():
        if sources.configs.get(alias) != config:
            raise RecipeError(
                f"sources.{alias}: this is not the source that was opened under that alias; open it first"
            )
    if not sources.speak(recipe):
        raise RecipeError("tokenizer: the sources were opened for another vocabulary; open them for this recipe")
    expanded = expand(recipe, sources.num_layers)
    return plan_route(recipe, sources, expanded, read_route(expanded, sources))


def plan_route(recipe: Recipe, sources: Sources, expanded: ExpandedRecipe, route: Route) -> MergePlan:
    """Plan a merge along a route that was checked already; as `plan` does."""
    planner = _Planner(recipe, sources, expanded, route)
    layout = sources.models[sources.reference].layout
    if not route.is_moved:
        tensors = [planner.plan(name, layout.place(name).layer) for name in sources.models[sources.reference].names()]
        return MergePlan(recipe, sources, expanded, route, tuple(tensors))
    outside = [name for name in sources.models[sources.reference].names() if layout.place(name).layer is None]
    tensors = [planner.plan(name, None) for name in outside]
    for index, hop in enumerate(route.hops):
        parts = sources.models[hop.lead].layout.parts(hop.take[hop.lead])
        tensors += [planner.plan(layout.full_name(index, part), index) for part in parts]
    return MergePlan(recipe, sources, expanded, route, tuple(sorted(tensors, key=lambda planned: planned.name)))


class _Planner:
    def __init__(self, recipe: Recipe, sources: Sources, expanded: ExpandedRecipe, route: Route) -> None:
        self._sources, self._expanded, self._route = sources, expanded, route
        self._dtype = DTYPES[recipe.dtype]
        self._layout = sources.models[sources.reference].layout
        self._steps: dict[int, tuple[Step | None, str | None]] = {}
        self._stretches: Mapping[str, tuple[Stretch, ...]] = {}
        if expanded.segments:
            self._stretches = plan_stretches(recipe, expanded, sources.models[sources.reference], self._prepared)

    def plan(self, name: str, layer: int | None) -> PlannedTensor:
        """Plan one tensor of the merged model, by its name there."""
        if name in self._stretches:
            return self._in_stretches(name, self._stretches[name])
        if layer is None:
            info = self._sources.models[self._sources.reference].info(name)
            place = self._layout.place(name)
            blend = self._outside(name, place.module)
            folded = None if self._route.is_plain else fold_outside(self._route, name, self._blocks())
            return self._planned(name, info, self._sources.reference, blend, rescale=folded)
        hop = self._route.hops[layer]
        part = name[len(self._layout.full_name(layer, "")) :]
        read = self._read(hop, part) if self._route.is_moved else None
        lead = hop.lead if self._route.is_moved else self._sources.reference
        source, there = self._sources.models[lead], name if read is None else read[lead]
        module = _module_in_layer(source.layout.place(there).module)
        blend = blend_of(name, module, hop.rules, hop.blends[module])
        folded = None if self._route.is_plain else fold_in_layer(hop, part, self._blocks())
        return self._planned(name, source.info(there), lead, blend, read=read, rescale=folded)

    def _outside(self, name: str, module: Module) -> Blend:
        expanded = self._expanded
        if module == "head":
            return blend_of(name, "head", expanded.head_rules, expanded.head)
        return blend_of(name, "embeddings", expanded.embedding_rules, expanded.embeddings)

    def _in_stretches(self, name: str, stretches: tuple[Stretch, ...]) -> PlannedTensor:
        info = TensorInfo(self._sources.models[self._sources.reference].info(name).shape, self._dtype)
        if len(stretches) == 1 and not stretches[0].noise:
            return PlannedTensor(name, info, stretches[0].step, stretches[0].copied_from)
        return PlannedTensor(name, info, None, None, stretches=stretches)

    def _prepared(self, blend: Blend) -> tuple[Step | None, str | None]:
        if id(blend) not in self._steps:
            self._steps[id(blend)] = _prepare(blend, self._sources)
        return self._steps[id(blend)]

    def _blocks(self) -> Blocks:
        return self._sources.blocks(self._sources.reference)

    def _read(self, hop: Hop, part: str) -> dict[str, str]:
        models = self._sources.models
        return {alias: models[alias].layout.full_name(taken, part) for alias, taken in hop.take.items()}

    def _planned(
        self,
        name: str,
        info: TensorInfo,
        lead: str,
        blend: Blend,
        *,
        read: Mapping[str, str] | None = None,
        rescale: Rescale | None,
    ) -> PlannedTensor:
        if is_buffer(name, info):
            return PlannedTensor(name, info, None, lead, read)
        if self._route.is_moved and blend.params.get("scope") == "global":
            raise NotBuiltError(
                f"layers: the blend of {name!r} has `scope: global`, a threshold over whole models, which along a "
                f"route through their layers is not defined; use `scope: tensor` or `row`, or merge one to one"
            )
        step, copied_from = self._prepared(blend)
        return PlannedTensor(name, TensorInfo(info.shape, self._dtype), step, copied_from, read, rescale)


def _module_in_layer(module: Module) -> Literal["attention", "mlp", "other"]:
    if module == "attention":
        return "attention"
    return "mlp" if module == "mlp" else "other"


def _prepare(blend: Blend, sources: Sources) -> tuple[Step | None, str | None]:
    blend = simplified(blend)
    copied_from = copied(blend)
    if copied_from is not None:
        return None, copied_from
    spec = operators.get(blend.method)
    for kind in spec.statistics(blend.params):
        sources.check_measured(blend.sources, kind, blend.method)
    if spec.adapters:
        check_adapters(sources, blend)
    kernel = operators.load(spec)
    return Step(blend, kernel, tuple(sources.infos[alias].content_hash for alias in blend.sources)), None


def copied_source(blend: Blend) -> str | None:
    """Return the source that a blend comes to bit by bit; None where it is a blend indeed."""
    return copied(simplified(blend))
