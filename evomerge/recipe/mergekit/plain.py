"""A mergekit file in one shape: slices of sources with aliases, whatever shape it was written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.documents import Key, did_you_mean, dotted_path
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.aliases import Aliases
from evomerge.recipe.mergekit.document import Config, Module, Setting
from evomerge.recipe.mergekit.document import Slice as WrittenSlice
from evomerge.recipe.mergekit.methods import METHODS, PARAMETERS, Method


@dataclass(frozen=True, slots=True)
class Scope:
    """Parameters, and where they stand in the document."""

    path: Key
    settings: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Input:
    """A source of a slice."""

    alias: str
    first: int
    """Its first layer."""
    scope: Scope


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive output layers."""

    path: Key
    method: Method
    inputs: tuple[Input, ...]
    """In the order of mergekit, which appends a base that is not listed."""
    base: str | None
    length: int | None
    """Number of layers; None: all of them (the shape `models`)."""
    scopes: tuple[Scope, ...]
    """Innermost first, without those of the inputs."""


class Plain:
    """The sources and slices of a mergekit file.

    Raises:
        RecipeError: with the key path of what is not understood.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.notes: list[str] = []
        self.aliases = Aliases(config.base_model)
        self.slices = tuple(self._slices())
        self._check_parameters()
        if len(self.slices[0].inputs) < len(self.slices[-1].inputs):
            self.notes.append(
                f"slices: mergekit takes no more sources for final norm and head than its first slice has "
                f"({len(self.slices[0].inputs)}); here they have all of the last slice"
            )

    def _slices(self) -> Iterator[Slice]:
        config = self.config
        outer = (_scope(("parameters",), config.parameters),)
        if config.slices is not None:
            for number, one in enumerate(config.slices):
                yield self._slice(("slices", number), one, outer)
            return
        if config.models is not None:
            yield self._whole(("models",), Module(models=config.models), outer)
            return
        modules = config.modules or {}
        if len(modules) > 1:
            raise RecipePathError(
                ("modules",),
                f"only the language model is merged by parts, and these are {len(modules)} modules; keep one",
            )
        name, module = next(iter(modules.items()))
        path: Key = ("modules", name)
        scopes = (_scope((*path, "parameters"), module.parameters), *outer)
        if bool(module.slices) == bool(module.models):
            raise RecipePathError(path, "give one of `slices` and `models`")
        if module.models:
            yield self._whole((*path, "models"), module, scopes)
        for number, one in enumerate(module.slices or ()):
            yield self._slice((*path, "slices", number), one, scopes)

    def _whole(self, path: Key, module: Module, scopes: tuple[Scope, ...]) -> Slice:
        inputs = [
            Input(self.aliases.alias(one.model), 0, _scope((*path, number, "parameters"), one.parameters))
            for number, one in enumerate(module.models or ())
        ]
        if self.aliases.base is not None and self.aliases.base not in [one.alias for one in inputs]:
            inputs.append(Input(self.aliases.base, 0, _scope(("base_model",), None)))
        method = self._method(("merge_method",), self.config.merge_method)
        return self._checked(Slice(path, method, tuple(inputs), self.aliases.base, None, scopes))

    def _slice(self, path: Key, one: WrittenSlice, scopes: tuple[Scope, ...]) -> Slice:
        inputs = [
            Input(
                self.aliases.alias(source.model),
                source.layer_range[0],
                _scope((*path, "sources", number, "parameters"), source.parameters),
            )
            for number, source in enumerate(one.sources)
        ]
        lengths = [source.layer_range[1] - source.layer_range[0] for source in one.sources]
        for number, length in enumerate(lengths):
            if length != lengths[0]:
                raise RecipePathError(
                    (*path, "sources", number, "layer_range"),
                    f"the sources of a slice have equally many layers, and this is {length} against {lengths[0]}",
                )
        base = self.aliases.base if one.base_model is None else self.aliases.alias(one.base_model)
        method = self._method(("merge_method",), self.config.merge_method)
        if one.merge_method is not None:
            method = self._method((*path, "merge_method"), one.merge_method)
            self.notes.append(
                f"{dotted_path((*path, 'merge_method'))}: mergekit ignores a method of a slice; here it counts"
            )
        if one.residual_weight is not None:
            self.notes.append(
                f"{dotted_path((*path, 'residual_weight'))}: without effect in mergekit, and left out here"
            )
        own = _scope((*path, "parameters"), one.parameters)
        return self._checked(Slice(path, method, tuple(inputs), base, lengths[0], (own, *scopes)))

    def _method(self, path: Key, name: str) -> Method:
        if name not in METHODS:
            raise RecipePathError(path, f"mergekit has no method {name!r}{did_you_mean(name, METHODS)}")
        return METHODS[name]

    def _checked(self, piece: Slice) -> Slice:
        """Check what mergekit checks of the sources of a slice."""
        aliases = [one.alias for one in piece.inputs]
        for alias in aliases:
            if aliases.count(alias) > 1:
                raise RecipePathError(piece.path, f"the model {alias!r} stands twice; list each source once")
        method = piece.method
        if method.base == "required" and piece.base is None:
            raise RecipePathError(piece.path, f"method {method.name!r} needs a base; give `base_model`")
        if method.base != "ignored" and piece.base is not None and piece.base not in aliases:
            raise RecipePathError(piece.path, f"the base {piece.base!r} is not among the sources of this slice; add it")
        count = len(aliases) - (method.base != "ignored" and piece.base in aliases)
        least, most = method.sources
        if count < least or (most is not None and count > most):
            wanted = f"exactly {least}" if least == most else f"at least {least}"
            beside = "" if method.base == "ignored" else " beside the base"
            raise RecipePathError(piece.path, f"method {method.name!r} takes {wanted} sources{beside}, got {count}")
        return piece

    def _check_parameters(self) -> None:
        """Refuse parameters of no method; note those that the method at hand does not have."""
        seen: set[Key] = set()
        for piece in self.slices:
            known = {parameter.name: parameter for parameter in piece.method.parameters}
            for scope in (*piece.scopes, *(one.scope for one in piece.inputs)):
                for name in scope.settings:
                    path = (*scope.path, name)
                    if path in seen:
                        continue
                    seen.add(path)
                    if name not in known:
                        self._note_unused(path, name, piece.method)
                    elif scope not in piece.scopes and not known[name].per_model:
                        self.notes.append(f"{dotted_path(path)}: mergekit reads {name} for all sources only; left out")

    def _note_unused(self, path: Key, name: str, method: Method) -> None:
        if name not in PARAMETERS:
            hint = did_you_mean(name, [parameter.name for parameter in method.parameters])
            raise RecipePathError(path, f"method {method.name!r} has no parameter {name!r}{hint}")
        if name != "int8_mask":
            self.notes.append(
                f"{dotted_path(path)}: method {method.name!r} has no {name}; without effect, and left out"
            )


def _scope(path: Key, settings: Mapping[str, Any] | None) -> Scope:
    return Scope(path, settings or {})
