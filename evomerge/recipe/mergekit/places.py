"""The native blend of every tensor of a mergekit merge: filters, gradients and defaults resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.documents import Key
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.facts import Look, ModelFacts, Part
from evomerge.recipe.mergekit.methods import Inputs, Parameter, Settings
from evomerge.recipe.mergekit.plain import Plain, Scope, Slice
from evomerge.recipe.mergekit.settings import evaluate
from evomerge.recipe.resolution import Module


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the merged model."""

    name: str
    module: Module | Part
    blend: Settings


@dataclass(frozen=True, slots=True)
class Place:
    """An output layer, or a part outside the layers."""

    take: Mapping[str, int]
    """Alias -> layer that is taken (0 outside the layers), the base among them."""
    tensors: tuple[Tensor, ...]


class Places:
    """Resolves the tensors of a mergekit file."""

    def __init__(self, plain: Plain, look: Look) -> None:
        """Nothing is looked at before it is needed."""
        self._plain, self._look = plain, look
        self._facts: dict[str, ModelFacts] = {}
        self.notes: list[str] = []

    def facts(self, alias: str) -> ModelFacts:
        """Return what is known of a source."""
        if alias not in self._facts:
            self._facts[alias] = self._look(self._plain.aliases.sources[alias])
        return self._facts[alias]

    @property
    def is_uniform(self) -> bool:
        """Whether all tensors blend alike: whole models, no gradient, no filter."""
        pieces = self._plain.slices
        settings = [setting for piece in pieces for scope in _scopes(piece) for setting in scope.settings.values()]
        conditions = [condition for setting in settings for condition in setting]
        return (
            len(pieces) == 1
            and pieces[0].length is None
            and all(condition.filter is None and not condition.is_gradient for condition in conditions)
        )

    def uniform(self) -> Settings:
        """Return the blend of all tensors where they blend alike."""
        piece = self._plain.slices[0]
        return self._blend(piece, "", {one.alias: "" for one in piece.inputs}, 0.0)

    def layers(self) -> Iterator[Place]:
        """Yield the output layers in order."""
        index = 0
        stack = self.facts(self._plain.slices[0].inputs[0].alias).stack
        for piece in self._plain.slices:
            length = self._length(piece)
            for offset in range(length):
                take = {one.alias: one.first + offset for one in piece.inputs}
                t = offset / (length - 1) if length > 1 else 1.0
                yield Place(take, tuple(self._in_layer(piece, take, f"{stack}.{index}", t)))
                index += 1

    def outside(self, part: Part) -> Place:
        """Return the embeddings, which follow the first slice, or final norm and head, which follow the last."""
        piece = self._plain.slices[0 if part == "embeddings" else -1]
        aliases = [one.alias for one in piece.inputs]
        names = self.facts(aliases[0]).names_in(part)
        tensors = [Tensor(name, part, self._blend(piece, name, dict.fromkeys(aliases, name), 0.0)) for name in names]
        return Place(dict.fromkeys(aliases, 0), tuple(tensors))

    def _length(self, piece: Slice) -> int:
        depths = {one.alias: self.facts(one.alias).num_layers for one in piece.inputs}
        if piece.length is None:
            if len(set(depths.values())) > 1:
                listed = ", ".join(f"{alias} {depth}" for alias, depth in depths.items())
                raise RecipePathError(
                    piece.path, f"the models differ in depth ({listed}); say which layers, by `slices`"
                )
            return next(iter(depths.values()))
        for number, one in enumerate(piece.inputs):
            if one.first + piece.length > depths[one.alias]:
                raise RecipePathError(
                    (*piece.path, "sources", number, "layer_range"),
                    f"{one.alias!r} has {depths[one.alias]} layers, and the range ends at {one.first + piece.length}",
                )
        return piece.length

    def _in_layer(self, piece: Slice, take: Mapping[str, int], prefix: str, t: float) -> Iterator[Tensor]:
        lead = piece.inputs[0].alias
        for part, module in self.facts(lead).layers[take[lead]].items():
            # A parameter of a source is filtered by the tensor's name in that source, as in mergekit.
            names = {alias: f"{self.facts(alias).stack}.{layer}.{part}" for alias, layer in take.items()}
            yield Tensor(f"{prefix}.{part}", module, self._blend(piece, f"{prefix}.{part}", names, t))

    def _blend(self, piece: Slice, name: str, names: Mapping[str, str], t: float) -> Settings:
        method = piece.method
        base = piece.base if method.base != "ignored" else None
        sources = tuple(one.alias for one in piece.inputs if one.alias != base)
        shared: dict[str, Any] = {}
        each: dict[str, dict[str, Any]] = {}
        for parameter in method.parameters:
            if not parameter.per_model:
                shared[parameter.name] = _value(parameter, piece.scopes, name, t, piece.path)
                continue
            each[parameter.name] = {
                one.alias: _value(parameter, (one.scope, *piece.scopes), names[one.alias], t, one.scope.path)
                for one in piece.inputs
                if one.alias in sources
            }
        try:
            return method.blend(Inputs(sources, base, shared, each, self.notes))
        except ValueError as error:
            raise RecipePathError(piece.path, str(error)) from None


def _scopes(piece: Slice) -> tuple[Scope, ...]:
    return (*piece.scopes, *(one.scope for one in piece.inputs))


def _value(parameter: Parameter, scopes: tuple[Scope, ...], name: str, t: float, path: Key) -> Any:
    """Return the value of a parameter for a tensor, the innermost scope first."""
    for scope in scopes:
        setting = scope.settings.get(parameter.name)
        if setting is None:
            continue
        try:
            value = evaluate(setting, name, t, parameter.kind)
        except ValueError as error:
            raise RecipePathError((*scope.path, parameter.name), str(error)) from None
        if value is not None:
            return value
    if parameter.default is None and not parameter.optional:
        where = f" for the tensor {name!r}" if name else ""
        raise RecipePathError((*path, parameter.name), f"mergekit requires this parameter, and no value holds{where}")
    return parameter.default
