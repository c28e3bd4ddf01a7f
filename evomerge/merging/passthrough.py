"""Recipes as mergekit files; a route as slices of whole layers, each with factors on some of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints import AdaptedModel
from evomerge.documents import dump_yaml
from evomerge.errors import NotBuiltError
from evomerge.merging.folding import fold_in_layer, fold_outside
from evomerge.merging.mergekit import facts_of
from evomerge.merging.plan import MergePlan, copied_source
from evomerge.merging.routes import Hop
from evomerge.merging.sources import Sources
from evomerge.recipe import Blend, Recipe
from evomerge.recipe.mergekit import Exported, export_mergekit


def to_mergekit(plan: MergePlan) -> Exported:
    """Write a recipe as a mergekit file: a passthrough where it is a route of copies, else a merge.

    Returns:
        The file, and where mergekit's result may differ by more than rounding.

    Raises:
        NotBuiltError: when mergekit cannot make this model; the text says which part.
    """
    _check_lines(plan)
    passthrough = _Passthrough(plan)
    if plan.expanded.segments or plan.route.is_scaled or passthrough.fits():
        return Exported(to_mergekit_passthrough(plan))
    recipe, sources = plan.recipe, plan.sources
    _check_vocabulary(sources)
    names = {alias: _model(recipe, sources, alias) for alias in recipe.sources}
    facts = {alias: facts_of(model) for alias, model in sources.models.items()}
    return export_mergekit(plan.expanded, facts, names, sources.reference)


def to_mergekit_passthrough(plan: MergePlan) -> str:
    """Write a route as a mergekit file of method `passthrough`, with the fold as factors on tensors.

    mergekit takes the embeddings of its first slice's model, and final norm and head of its last slice's: a route
    is only written if it does the same. mergekit multiplies in the sources' dtype, so that its result may differ
    from ours by rounding.

    Args:
        plan: of a recipe in which every output layer takes one layer of one source.

    Returns:
        YAML.

    Raises:
        NotBuiltError: when the recipe is more than that, or its fold more than factors (norms that store their
            weight less one).
    """
    _check_lines(plan)
    return dump_yaml(_Passthrough(plan).document())


def _check_lines(plan: MergePlan) -> None:
    if plan.recipe.lines is not None and not plan.recipe.lines.is_neutral:
        raise NotBuiltError(
            "lines: a mergekit file has no word for a share that grows with depth; export a checkpoint or the recipe"
        )


def _check_vocabulary(sources: Sources) -> None:
    if sources.is_aligned:
        raise NotBuiltError(
            "tokenizer: mergekit has other rules for rows that are missing or stand for no token; export a checkpoint "
            "or the recipe"
        )


class _Passthrough:
    def __init__(self, plan: MergePlan) -> None:
        self._plan, self._route, self._sources = plan, plan.route, plan.sources

    def document(self) -> dict[str, Any]:
        self._check_copies()
        slices = [self._slice(hops) for hops in _runs(self._route.hops)]
        return {"merge_method": "passthrough", "dtype": self._plan.recipe.dtype, "slices": slices}

    def fits(self) -> bool:
        """Tell whether every layer is a copy of one layer, and the ends are those of the models at the ends."""
        try:
            self._check_copies()
        except NotBuiltError:
            return False
        return True

    def _check_copies(self) -> None:
        _check_vocabulary(self._sources)
        if self._plan.expanded.has_rules:
            raise NotBuiltError(
                "tensors: a mergekit passthrough copies each layer from one model, and this recipe has blends of "
                "single tensors; export a checkpoint or the recipe"
            )
        if self._plan.expanded.segments:
            raise NotBuiltError(
                "segments: a mergekit passthrough copies each layer from one model, and this recipe blends pieces of "
                "the flat index; export a checkpoint or the recipe"
            )
        hops = self._route.hops
        for index, hop in enumerate(hops):
            if any(copied_source(blend) != hop.lead for blend in hop.blends.values()):
                raise NotBuiltError(
                    f"layers[{index}]: a mergekit passthrough copies each layer from one model, and this one blends "
                    f"{', '.join(hop.take)}; export a checkpoint or the recipe"
                )
        expanded = self._plan.expanded
        ends: list[tuple[str, str, Blend, Hop]] = [
            ("embeddings", "first", expanded.embeddings, hops[0]),
            ("head", "last", expanded.head, hops[-1]),
        ]
        for part, where, blend, hop in ends:
            alias = copied_source(blend)
            if alias is None or self._sources.models[alias] is not self._sources.models[hop.lead]:
                raise NotBuiltError(
                    f"{part}: a mergekit passthrough takes the {part} of its {where} layer's model, which is "
                    f"{hop.lead!r} here, and this recipe does not; export a checkpoint or the recipe"
                )

    def _slice(self, hops: Sequence[Hop]) -> dict[str, Any]:
        lead = hops[0].lead
        layers = [hops[0].take[lead], hops[-1].take[lead] + 1]
        source: dict[str, Any] = {"model": _model(self._plan.recipe, self._sources, lead), "layer_range": layers}
        factors = self._factors(hops) if self._route.is_scaled else {}
        rules: list[dict[str, Any]] = [
            {"filter": name, "value": value} for name, value in _filters(factors).items() if value != 1
        ]
        if rules:
            source["parameters"] = {"scale": [*rules, {"value": 1.0}]}
        return {"sources": [source]}

    def _factors(self, hops: Sequence[Hop]) -> dict[str, float]:
        """Return the factor of every tensor that has the slice's parameters, by its name within its layer."""
        lead = hops[0].lead
        blocks, layout = self._sources.blocks(lead), self._sources.models[lead].layout
        parts = dict.fromkeys(part for hop in hops for part in layout.parts(hop.take[lead]))
        folds = {part: fold_in_layer(hops[0], part, blocks) for part in parts}
        if hops[0] is self._route.hops[0] or hops[-1] is self._route.hops[-1]:
            # What is before the layers has the first slice's parameters, what is behind them the last one's.
            for name in self._sources.models[lead].names():
                if layout.place(name).layer is None:
                    is_last = hops[-1] is self._route.hops[-1]
                    folds[name] = fold_outside(self._route, name, blocks) if is_last else None
        if any(fold is not None and fold.offset for fold in folds.values()):
            raise NotBuiltError(
                f"a mergekit passthrough cannot scale the norms of {blocks.model_type!r}, which are stored less "
                f"{blocks.offset:g}; export a checkpoint or the recipe"
            )
        return {name: 1.0 if fold is None else fold.factor for name, fold in folds.items()}


def _filters(factors: Mapping[str, float]) -> dict[str, float]:
    """Return filter -> factor with the shortest filters that meet no tensor of another factor.

    mergekit applies the first filter that is part of a tensor's name.
    """
    found: dict[str, float] = {}
    for name, factor in factors.items():
        if factor == 1 or any(short in name for short in found):
            continue
        pieces = [piece for piece in name.split(".") if piece not in ("weight", "bias")]
        for short in (pieces[-1], ".".join(pieces[-2:]), name):
            if all(value == factor for other, value in factors.items() if short in other):
                found[short] = factor
                break
    return found


def _model(recipe: Recipe, sources: Sources, alias: str) -> str:
    config = recipe.sources[alias]
    if not isinstance(config.model, str):
        raise NotBuiltError(
            f"sources.{alias}: a mergekit file cannot name a nested recipe; export a checkpoint or the recipe"
        )
    model = sources.models[alias]
    name = _named(config.model, config.revision, model.folder)
    if config.adapter is None or not isinstance(model, AdaptedModel):
        return name
    return f"{name}+{_named(config.adapter, config.adapter_revision, model.adapter.folder)}"


def _named(name: str, revision: str | None, folder: Path) -> str:
    """Return a hub id with its revision, or a folder in full."""
    if f"models--{name.replace('/', '--')}" not in folder.parts:
        return str(folder.resolve())
    return name if revision is None else f"{name}@{revision}"


def _runs(hops: Sequence[Hop]) -> list[list[Hop]]:
    """Gather hops through consecutive layers of one source at one scale: a slice each."""
    runs: list[list[Hop]] = []
    for hop in hops:
        last = runs[-1][-1] if runs else None
        follows = last is not None and hop.lead == last.lead and hop.take[hop.lead] == last.take[hop.lead] + 1
        if last is not None and follows and hop.scale == last.scale:
            runs[-1].append(hop)
        else:
            runs.append([hop])
    return runs
