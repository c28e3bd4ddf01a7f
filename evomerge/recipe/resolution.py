"""Which blend holds where: the chains of overrides of a recipe's layers and parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from evomerge.documents import Key, did_you_mean
from evomerge.recipe.blends import Blend, BlendConfig, Link, Place, copy_of, resolve
from evomerge.recipe.copies import simplified
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.patterns import matches

if TYPE_CHECKING:
    from evomerge.recipe.blends import SegmentConfig
    from evomerge.recipe.schema import LayerConfig, ModulesConfig, Recipe, TensorsConfig

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


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds at one place for the tensors whose names match."""

    patterns: tuple[str, ...]
    """Any of which."""
    blends: Mapping[Group, Blend]
    """By the module groups of the place."""


def blend_of(name: str, group: Group, rules: Iterable[Rule], default: Blend) -> Blend:
    """Return the blend of a tensor: that of the first rule that matches its name, else the default."""
    return next((rule.blends[group] for rule in rules if matches(rule.patterns, name)), default)


def blends_in(rules: Iterable[Rule]) -> list[Blend]:
    """Return every blend of some rules."""
    return [blend for rule in rules for blend in rule.blends.values()]


def part_blend(recipe: Recipe, part: Literal["embeddings", "head"]) -> Blend:
    """Resolve the blend of the embeddings or the head, in which all sources take part unless it says which.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    taken, chain = _part_chain(recipe, part)
    config = recipe.embeddings if part == "embeddings" else recipe.head
    if config is not None and config.take is not None and len(taken) == 1 and config.blend is None:
        return copy_of(taken[0])
    return _blend(recipe, chain, (part,), taken)


def part_rules(recipe: Recipe, part: Literal["embeddings", "head"]) -> tuple[Rule, ...]:
    """Resolve what is said of single tensors of the embeddings or the head, in order.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    taken, chain = _part_chain(recipe, part)
    own = recipe.embeddings if part == "embeddings" else recipe.head
    written = [
        *_written_rules((part, "tensors"), own.tensors if own else ()),
        *_written_rules(("tensors",), recipe.tensors),
    ]
    rules = []
    for path, config in written:
        rules.append(Rule(config.patterns, {part: _ruled(recipe, config, path, chain, (part,), taken)}))
    return tuple(rules)


def _part_chain(recipe: Recipe, part: Literal["embeddings", "head"]) -> tuple[tuple[str, ...], list[Link]]:
    config = recipe.embeddings if part == "embeddings" else recipe.head
    taken = tuple(recipe.sources)
    if config is not None and config.take is not None:
        taken = tuple(alias for alias in taken if alias in config.take)
    return taken, [(("blend",), recipe.blend), ((part, "blend"), config.blend if config else None)]


def layer_blends(recipe: Recipe, index: int | None, layer: LayerConfig | None) -> dict[Module, Blend]:
    """Resolve the blends of one layer that is written out, or (None) of the layers where none is.

    A written layer that takes one of several sources and says nothing about a blend copies that source's.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    path: Key = ("layers",) if index is None else ("layers", index)
    taken = _taken(recipe, layer)
    if _is_silent_copy(recipe, layer):
        return dict.fromkeys(MODULES, copy_of(taken[0]))
    chains = {module: _layer_chain(recipe, path, layer, module) for module in MODULES}
    if recipe.modules is None and (layer is None or layer.modules is None):
        return dict.fromkeys(MODULES, _blend(recipe, chains["other"], path, taken))
    return {module: _blend(recipe, chain, path, taken) for module, chain in chains.items()}


def layer_rules(recipe: Recipe, index: int | None, layer: LayerConfig | None) -> tuple[Rule, ...]:
    """Resolve what is said of single tensors of a layer, in the order in which the first match counts.

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    path: Key = ("layers",) if index is None else ("layers", index)
    taken = _taken(recipe, layer)
    written = _written_rules((*path, "tensors"), () if layer is None else layer.tensors)
    if not _is_silent_copy(recipe, layer):
        written += _written_rules(("tensors",), recipe.tensors)
    rules = []
    for place, config in written:
        blends: dict[Group, Blend] = {}
        for module in MODULES:
            chain = _layer_chain(recipe, path, layer, module)
            blends[module] = _ruled(recipe, config, place, chain, path, taken)
        rules.append(Rule(config.patterns, blends))
    return tuple(rules)


def _written_rules(path: Key, configs: Sequence[TensorsConfig]) -> list[tuple[Key, TensorsConfig]]:
    return [((*path, number), config) for number, config in enumerate(configs)]


def _taken(recipe: Recipe, layer: LayerConfig | None) -> tuple[str, ...]:
    return tuple(alias for alias in recipe.sources if layer is None or alias in layer.take)


def _is_silent_copy(recipe: Recipe, layer: LayerConfig | None) -> bool:
    """Tell whether a written layer takes one of several sources and says nothing about a blend."""
    if layer is None or len(_taken(recipe, layer)) != 1 or len(recipe.sources) == 1:
        return False
    links = (layer.blend, *_module_links(layer.modules).values())
    return all(link is None or link.is_empty for link in links)


def _layer_chain(recipe: Recipe, path: Key, layer: LayerConfig | None, module: Module) -> list[Link]:
    own, own_modules = (None, None) if layer is None else (layer.blend, layer.modules)
    return [
        (("blend",), recipe.blend),
        (("modules", module), _module_links(recipe.modules)[module]),
        ((*path, "blend"), own),
        ((*path, "modules", module), _module_links(own_modules)[module]),
    ]


def _ruled(
    recipe: Recipe, config: TensorsConfig, written: Key, chain: Sequence[Link], path: Key, taken: tuple[str, ...]
) -> Blend:
    """Resolve one entry of `tensors`, which stands at `written`, at the place `path`."""
    if config.from_ is None:
        return _blend(recipe, [*chain, ((*written, "blend"), config.blend)], path, taken)
    if config.from_ not in recipe.sources:
        known = did_you_mean(config.from_, recipe.sources)
        raise RecipePathError((*written, "from"), f"{config.from_!r} is not a source of this recipe{known}")
    return copy_of(config.from_)


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


def full_take(recipe: Recipe, index: int, blends: Iterable[Blend]) -> dict[str, int]:
    """Return which layer a written layer takes of each source, and of others that its blends need.

    Those are the base of a method, and sources that single tensors come from: where the layer does not name them, they
    are taken at the depth on which the others agree.

    Raises:
        RecipeError: when the others do not agree.
    """
    layers = recipe.layers or ()
    take = {alias: layers[index].take[alias] for alias in recipe.sources if alias in layers[index].take}
    depths = set(take.values())
    for blend in blends:
        for alias in (blend.base, *blend.sources):
            if alias is None or alias in take:
                continue
            if len(depths) > 1:
                needed = f"method {blend.method!r} needs a layer of the base"
                if alias != blend.base:
                    needed = f"single tensors come from a layer of {alias!r}"
                text = (
                    f"{needed}, and the sources differ in depth here; say which, for instance `{alias}: {min(depths)}`"
                )
                raise RecipePathError(("layers", index, "take"), text)
            take[alias] = min(depths)
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
