"""Which blend holds where: the chains of overrides of a recipe's layers and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from evomerge.documents import Key
from evomerge.recipe.blends import Blend, BlendConfig, Link, Place, copy_of, resolve
from evomerge.recipe.copies import simplified
from evomerge.recipe.faults import RecipePathError

if TYPE_CHECKING:
    from evomerge.recipe.blends import SegmentConfig
    from evomerge.recipe.schema import LayerConfig, ModulesConfig, Recipe

Module = Literal["attention", "mlp", "other"]
MODULES: tuple[Module, ...] = ("attention", "mlp", "other")
Group = Literal["attention", "mlp", "other", "embeddings", "head"]
"""A module group of the whole model; what is outside of the layers and no head counts as embeddings."""
GROUPS: tuple[Group, ...] = (*MODULES, "embeddings", "head")
Chromosome = Group | Literal["rest"]
"""A part of the model with segments of its own: a module group, or all those not named."""
CHROMOSOMES: tuple[Chromosome, ...] = (*GROUPS, "rest")


@dataclass(frozen=True, slots=True)
class ExpandedSegment:
    """One range of a chromosome's flat parameter index."""

    until: int | None
    """First index after it; None: the end of the chromosome."""
    blend: Blend
    noise: Mapping[int, float] = field(default_factory=dict)
    """Seed -> factor, other than 0, of the noise that is added."""


def part_blend(recipe: Recipe, part: Literal["embeddings", "head"]) -> Blend:
    """Resolve the blend of the embeddings or the head, in which all sources take part.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    config = recipe.embeddings if part == "embeddings" else recipe.head
    chain: list[Link] = [(("blend",), recipe.blend), ((part, "blend"), config.blend if config else None)]
    return _blend(recipe, chain, (part,), tuple(recipe.sources))


def layer_blends(recipe: Recipe, index: int | None, layer: LayerConfig | None) -> dict[Module, Blend]:
    """Resolve the blends of one layer that is written out, or (None) of the layers where none is.

    A written layer that takes one of several sources and says nothing about a blend copies that source's.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    path: Key = ("layers",) if index is None else ("layers", index)
    taken = tuple(alias for alias in recipe.sources if layer is None or alias in layer.take)
    own, own_modules = (None, None) if layer is None else (layer.blend, layer.modules)
    silent = (own is None or own.is_empty) and all(
        link is None or link.is_empty for link in _module_links(own_modules).values()
    )
    if len(taken) == 1 and len(recipe.sources) > 1 and silent:
        return dict.fromkeys(MODULES, copy_of(taken[0]))
    blends: dict[Module, Blend] = {}
    for module in MODULES:
        chain: list[Link] = [
            (("blend",), recipe.blend),
            (("modules", module), _module_links(recipe.modules)[module]),
            ((*path, "blend"), own),
            ((*path, "modules", module), _module_links(own_modules)[module]),
        ]
        blends[module] = _blend(recipe, chain, path, taken)
    return blends


def written_segments(recipe: Recipe) -> dict[Chromosome, tuple[Key, Sequence[SegmentConfig]]]:
    """Return the segments of each chromosome with their key path; a plain list is `rest`, which is then all."""
    if recipe.segments is None:
        return {}
    if not isinstance(recipe.segments, Mapping):
        return {"rest": (("segments",), recipe.segments)}
    return {cast("Chromosome", name): (("segments", name), each) for name, each in recipe.segments.items()}


def segment_blends(recipe: Recipe) -> dict[Chromosome, tuple[ExpandedSegment, ...]]:
    """Resolve the segments of each chromosome, in the order of the groups; equal neighbours are joined.

    A module group that no chromosome names has the recipe's `blend`.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    written = written_segments(recipe)
    aliases = tuple(recipe.sources)
    found: dict[Chromosome, tuple[ExpandedSegment, ...]] = {}
    for name in CHROMOSOMES:
        if name in written:
            place, segments = written[name]
            resolved = []
            for index, segment in enumerate(segments):
                path: Key = (*place, index)
                blend = _blend(recipe, [(("blend",), recipe.blend), (path, segment)], path, aliases)
                noise = {int(seed): scale for seed, scale in segment.noise.items() if scale != 0}
                resolved.append(ExpandedSegment(segment.until, blend, noise))
            found[name] = _joined(resolved)
    if "rest" not in found and len(found) < len(GROUPS):
        path = ("segments", "rest")
        found["rest"] = (ExpandedSegment(None, _blend(recipe, [(("blend",), recipe.blend)], path, aliases)),)
    return found


def _joined(segments: Sequence[ExpandedSegment]) -> tuple[ExpandedSegment, ...]:
    joined = [segments[0]]
    last = simplified(segments[0].blend)
    for segment in segments[1:]:
        blend = simplified(segment.blend)
        if blend == last and segment.noise == joined[-1].noise:
            joined.pop()
        joined.append(segment)
        last = blend
    return tuple(joined)


def full_take(recipe: Recipe, index: int, blends: Mapping[Module, Blend]) -> dict[str, int]:
    """Return which layer a written layer takes of each source, with the base's where a method needs it.

    A base that the layer does not name is taken at the depth on which the others agree.

    Raises:
        RecipeError: when the others do not agree.
    """
    layers = recipe.layers or ()
    take = {alias: layers[index].take[alias] for alias in recipe.sources if alias in layers[index].take}
    needed = next((blend for blend in blends.values() if blend.base is not None), None)
    if needed is None or needed.base is None or needed.base in take:
        return take
    depths = set(take.values())
    if len(depths) > 1:
        text = (
            f"method {needed.method!r} needs a layer of the base, and the sources differ in depth here; "
            f"say which, for instance `{needed.base}: {min(depths)}`"
        )
        raise RecipePathError(("layers", index, "take"), text)
    take[needed.base] = depths.pop()
    return {alias: take[alias] for alias in recipe.sources if alias in take}


def _module_links(modules: ModulesConfig | None) -> dict[Module, BlendConfig | None]:
    if modules is None:
        return dict.fromkeys(MODULES)
    return {"attention": modules.attention, "mlp": modules.mlp, "other": modules.other}


def _blend(recipe: Recipe, chain: Sequence[Link], path: Key, taken: tuple[str, ...]) -> Blend:
    if len(recipe.sources) == 1 and all(config is None or config.is_empty for _, config in chain):
        return copy_of(taken[0])
    place = Place(path=path, taken=taken, aliases=tuple(recipe.sources), base=recipe.base)
    return resolve(chain, place)
