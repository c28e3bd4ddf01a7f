"""Which blend holds where: the chains of overrides of a recipe's layers and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from evomerge.documents import Key
from evomerge.recipe.blends import Blend, BlendConfig, Link, Place, copy_of, resolve
from evomerge.recipe.faults import RecipePathError

if TYPE_CHECKING:
    from evomerge.recipe.schema import LayerConfig, ModulesConfig, Recipe

Module = Literal["attention", "mlp", "other"]
MODULES: tuple[Module, ...] = ("attention", "mlp", "other")


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


def segment_blends(recipe: Recipe) -> tuple[tuple[int | None, Blend], ...]:
    """Resolve the segments as (first index after it, blend); the last one reaches to the end (None).

    Raises:
        RecipeError: with the key path of what is wrong.
    """
    resolved = []
    for index, segment in enumerate(recipe.segments or ()):
        path: Key = ("segments", index)
        chain: list[Link] = [(("blend",), recipe.blend), (path, segment)]
        resolved.append((segment.until, _blend(recipe, chain, path, tuple(recipe.sources))))
    return tuple(resolved)


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
