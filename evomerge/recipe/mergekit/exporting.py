"""From a native recipe to a mergekit file that makes the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.documents import dump_yaml
from evomerge.errors import NotBuiltError
from evomerge.recipe.blends import Blend
from evomerge.recipe.copies import copied, simplified
from evomerge.recipe.expansion import ExpandedRecipe
from evomerge.recipe.mergekit.facts import ModelFacts, Part
from evomerge.recipe.mergekit.inverse import Written, written, written_copy
from evomerge.recipe.mergekit.methods import METHODS
from evomerge.recipe.resolution import Group, blend_of

_INSTEAD = "export a checkpoint or the recipe"


@dataclass(frozen=True, slots=True)
class Exported:
    """A recipe as a mergekit file."""

    text: str
    """YAML."""
    notes: tuple[str, ...] = ()
    """Where mergekit's result may differ by more than rounding, and how much."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    where: str
    """Key path of what says how it blends, for errors."""
    name: str
    """In the merged model."""
    part: str
    """Within its layer; outside of layers the whole name."""
    blend: Blend


def export_mergekit(
    expanded: ExpandedRecipe, facts: Mapping[str, ModelFacts], names: Mapping[str, str], reference: str
) -> Exported:
    """Write a recipe as a mergekit file.

    mergekit computes in float32 and rounds once, as here (`dtype: float32` with an `out_dtype`).

    Args:
        expanded: the recipe in full; without segments and scales.
        facts: of every source.
        names: alias -> what mergekit calls the source.
        reference: the source whose configuration the merged model has.

    Raises:
        NotBuiltError: when mergekit cannot make this model; the text says which part.
    """
    return _Export(expanded, facts, names, reference).exported()


class _Export:
    def __init__(
        self, expanded: ExpandedRecipe, facts: Mapping[str, ModelFacts], names: Mapping[str, str], reference: str
    ) -> None:
        self._expanded, self._facts, self._names, self._reference = expanded, facts, names, reference
        self._notes: list[str] = []
        self._slices: list[list[_Tensor]] = [self._layer(index) for index in range(len(expanded.layers))]
        self._slices[0] = [*self._outside("embeddings"), *self._slices[0]]
        self._slices[-1] += self._outside("head")

    def exported(self) -> Exported:
        """Return the file."""
        if len(set(self._names.values())) < len(self._names):
            raise NotBuiltError(f"sources: one model has two aliases, which mergekit does not allow; {_INSTEAD}")
        like = self._like()
        slices = [self._slice(index, like) for index in range(len(self._slices))]
        # Where a method ignores the base, it only gives configuration and tokenizer.
        base = self._reference if METHODS[like.method].base == "ignored" else like.base
        if len(slices[0]["sources"]) < len(slices[-1]["sources"]):
            raise NotBuiltError(
                f"head: mergekit takes no more sources for final norm and head than the first layer has; {_INSTEAD}"
            )
        document: dict[str, Any] = {"merge_method": like.method}
        if base is not None:
            document["base_model"] = self._names[base]
        document |= {"dtype": "float32", "out_dtype": self._expanded.dtype, "slices": _joined(slices)}
        if base is None:
            self._notes.append(
                f"without a base, mergekit takes configuration and tokenizer from any of the models; here they are of "
                f"{self._reference!r}"
            )
        return Exported(dump_yaml(document), tuple(dict.fromkeys(self._notes)))

    # ---- tensors

    def _layer(self, index: int) -> list[_Tensor]:
        layer = self._expanded.layers[index]
        lead = self._reference if self._reference in layer.take else next(iter(layer.take))
        facts, stack = self._facts[lead], self._facts[self._reference].stack
        found = []
        for part, module in facts.layers[layer.take[lead]].items():
            name = f"{stack}.{index}.{part}"
            blend = blend_of(name, module, layer.rules, layer.blends[module])
            found.append(_Tensor(f"layers[{index}]", name, part, simplified(blend)))
        return found

    def _outside(self, part: Part) -> list[_Tensor]:
        expanded, group = self._expanded, part
        rules = expanded.embedding_rules if part == "embeddings" else expanded.head_rules
        default = expanded.embeddings if part == "embeddings" else expanded.head
        names = self._facts[self._reference].names_in(part)
        kind: Group = group
        return [_Tensor(part, name, name, simplified(blend_of(name, kind, rules, default))) for name in names]

    def _like(self) -> Written:
        """Return the one method of the file, as one of its tensors has it; copies alone are linear."""
        tensors = [tensor for tensors in self._slices for tensor in tensors]
        merged = [tensor for tensor in tensors if copied(tensor.blend) is None]
        if not merged:
            alias = copied(tensors[0].blend) or self._reference
            return Written("linear", None, {"normalize": True}, {"weight": {alias: 1.0}}, {"weight": 0.0})
        first = self._written(merged[0])
        for tensor in merged:
            if tensor.blend.method != merged[0].blend.method:
                raise NotBuiltError(
                    f"{tensor.where}: method {tensor.blend.method!r} stands beside {merged[0].blend.method!r}, and a "
                    f"mergekit file has one method; {_INSTEAD}"
                )
        return first

    def _written(self, tensor: _Tensor) -> Written:
        try:
            return written(tensor.blend, self._notes)
        except ValueError as error:
            raise NotBuiltError(f"{tensor.where}: {error}; {_INSTEAD}") from None

    # ---- slices

    def _slice(self, index: int, like: Written) -> dict[str, Any]:
        tensors, take = self._slices[index], dict(self._expanded.layers[index].take)
        base = self._base(tensors, like)
        used = {alias for tensor in tensors for alias in (*tensor.blend.sources, tensor.blend.base)} | {base}
        aliases = [alias for alias in self._names if alias in used]
        sources = [alias for alias in aliases if alias != base]
        least, most = METHODS[like.method].sources
        if index == 0 and "weight" in like.rest:
            # mergekit takes no more sources for final norm and head than its first slice has.
            least = max(least, len({alias for tensor in self._slices[-1] for alias in tensor.blend.sources}))
        sources += [alias for alias in self._names if alias not in (*aliases, base)][: max(0, least - len(sources))]
        aliases = [alias for alias in self._names if alias in (*aliases, *sources)]
        if most is not None and len(sources) > most:
            raise NotBuiltError(
                f"layers[{index}]: a slice of mergekit's {like.method} has {most} sources beside the base, and these "
                f"are {', '.join(sources)}; {_INSTEAD}"
            )
        found = {tensor.part: self._in_slice(tensor, like, base, sources) for tensor in tensors}
        layers = {alias: take.get(alias, min(index, self._facts[alias].num_layers - 1)) for alias in aliases}
        entries = []
        for alias in aliases:
            entry: dict[str, Any] = {"model": self._names[alias], "layer_range": [layers[alias], layers[alias] + 1]}
            if alias in sources and like.each:
                tables = {name: {part: one.each[name][alias] for part, one in found.items()} for name in like.each}
                entry["parameters"] = {name: _setting(table, tensors) for name, table in tables.items()}
            entries.append(entry)
        piece: dict[str, Any] = {"sources": entries}
        if base is not None and base != like.base:
            piece["base_model"] = self._names[base]
        shared = {name: {part: one.shared[name] for part, one in found.items()} for name in like.shared}
        if shared:
            piece["parameters"] = {name: _setting(table, tensors) for name, table in shared.items()}
        return piece

    def _base(self, tensors: Iterable[_Tensor], like: Written) -> str | None:
        bases = {tensor.blend.base for tensor in tensors if copied(tensor.blend) is None}
        if len(bases) > 1:
            where = next(iter(tensors)).where
            raise NotBuiltError(f"{where}: a slice of mergekit has one base, and here they are several; {_INSTEAD}")
        return bases.pop() if bases else like.base

    def _in_slice(self, tensor: _Tensor, like: Written, base: str | None, sources: Sequence[str]) -> Written:
        """Return what a tensor is in its slice, with every source of the slice in it."""
        alias = copied(tensor.blend)
        like = Written(like.method, base, like.shared, like.each, like.rest)
        try:
            if alias is not None:
                return written_copy(alias, like, sources)
            own = self._written(tensor)
            missing = [one for one in sources if one not in tensor.blend.sources]
            if missing and "weight" not in own.rest:
                raise ValueError(f"mergekit's {own.method} cannot leave {missing[0]!r} out in one place of a slice")  # noqa: TRY301
        except ValueError as error:
            raise NotBuiltError(f"{tensor.where}: {error}; {_INSTEAD}") from None
        each = {
            name: {one: values.get(one, own.rest.get(name)) for one in sources} for name, values in own.each.items()
        }
        return Written(own.method, base, own.shared, each, own.rest)


def _setting(table: Mapping[str, Any], tensors: Sequence[_Tensor]) -> Any:
    """Return one value, or filters with the shortest texts that meet no tensor of another value."""
    counts = Counter(map(repr, table.values()))
    usual = max(table.values(), key=lambda value: counts[repr(value)])
    found: dict[str, Any] = {}
    names = {tensor.name: table[tensor.part] for tensor in tensors}
    for tensor in tensors:
        value = table[tensor.part]
        if value == usual or any(text in tensor.name for text in found):
            continue
        pieces = [piece for piece in tensor.part.split(".") if piece not in ("weight", "bias")]
        for text in (pieces[0], pieces[-1], ".".join(pieces[-2:]), tensor.part, tensor.name):
            if all(other == value for name, other in names.items() if text in name):
                found[text] = value
                break
        else:
            raise NotBuiltError(
                f"{tensor.where}: no filter of mergekit tells {tensor.name!r} from the others; {_INSTEAD}"
            )
    if not found:
        return usual
    return [*({"filter": text, "value": value} for text, value in found.items()), {"value": usual}]


def _joined(slices: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join slices that follow each other in every source and say the same."""
    joined: list[dict[str, Any]] = []
    for piece in slices:
        last = joined[-1] if joined else None
        if last is not None and _said(last) == _said(piece) and _follows(last, piece):
            for source, more in zip(last["sources"], piece["sources"], strict=True):
                source["layer_range"] = [source["layer_range"][0], more["layer_range"][1]]
        else:
            joined.append(piece)
    return joined


def _said(piece: Mapping[str, Any]) -> dict[str, Any]:
    sources = [{key: value for key, value in source.items() if key != "layer_range"} for source in piece["sources"]]
    return {**piece, "sources": sources}


def _follows(last: Mapping[str, Any], piece: Mapping[str, Any]) -> bool:
    pairs = zip(last["sources"], piece["sources"], strict=True)
    return all(one["layer_range"][1] == other["layer_range"][0] for one, other in pairs)
