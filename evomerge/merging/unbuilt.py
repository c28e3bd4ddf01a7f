"""What a recipe may say but this version cannot build: refused by name, never ignored."""

from __future__ import annotations

from evomerge.errors import NotBuiltError
from evomerge.recipe import ExpandedRecipe, Recipe


def refuse_unbuilt(recipe: Recipe) -> None:
    """Refuse adapters, united tokenizers, segments and scaled streams.

    Raises:
        NotBuiltError: naming the key path and what is possible now.
    """
    for alias, source in recipe.sources.items():
        if source.adapter is not None:
            raise NotBuiltError(
                f"sources.{alias}.adapter: adapters cannot be merged yet; write the adapter into its model "
                f"first (peft: merge_and_unload) and name the result as `model`"
            )
    if recipe.tokenizer is not None and recipe.tokenizer.union is not None:
        raise NotBuiltError(
            "tokenizer.union: vocabularies cannot be united yet; merge models of one vocabulary and write "
            "`tokenizer: {from: ALIAS}`"
        )
    if recipe.segments is not None:
        raise NotBuiltError(
            "segments: piecewise blends cannot be built yet; "
            "give blends by `layers`, `modules`, `embeddings` and `head`"
        )
    for index, layer in enumerate(recipe.layers or ()):
        if layer.scale != 1:
            raise NotBuiltError(f"layers[{index}].scale: scaled streams cannot be built yet; leave the scale out")


def refuse_routes(expanded: ExpandedRecipe, num_layers: int) -> None:
    """Refuse layers that are not one to one.

    Args:
        expanded: the recipe in full.
        num_layers: number of layers of the sources.

    Raises:
        NotBuiltError: naming the first such layer.
    """
    possible = "each output layer must take the layers of its own index for now"
    for index, layer in enumerate(expanded.layers):
        for alias, taken in layer.take.items():
            if taken != index:
                raise NotBuiltError(
                    f"layers[{index}].take.{alias}: a route through layer {taken} cannot be built yet; {possible}"
                )
    if len(expanded.layers) != num_layers:
        raise NotBuiltError(
            f"layers: {len(expanded.layers)} output layers from sources of {num_layers} cannot be built yet; {possible}"
        )
