"""From a mergekit file to a native recipe with the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.documents import Document, did_you_mean
from evomerge.errors import ConfigError, RecipeError
from evomerge.recipe.faults import RecipePathError
from evomerge.recipe.mergekit.compress import parts_of, rules_of, written
from evomerge.recipe.mergekit.document import Config
from evomerge.recipe.mergekit.facts import Look
from evomerge.recipe.mergekit.methods import Settings, is_copy
from evomerge.recipe.mergekit.places import Place, Places
from evomerge.recipe.mergekit.plain import Plain
from evomerge.recipe.mergekit.tokens import tokenizer_of
from evomerge.recipe.schema import Recipe

_DTYPES = ("float32", "bfloat16", "float16")
_IN_FLOAT32 = ("linear", "slerp", "passthrough")
"""Methods that mergekit computes in float32 whatever the dtype (or does not compute at all)."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A translated mergekit file."""

    recipe: Recipe
    notes: tuple[str, ...]
    """Where the result differs from mergekit's, and what was left out; one sentence each."""


def import_mergekit(document: Document, look: Look) -> Imported:
    """Translate a mergekit file into a recipe.

    Filters, gradients and defaults are resolved for every tensor, and written as blends of layers, module groups and
    single tensors. Models keep the names they have in the file.

    Args:
        document: the file.
        look: reads the headers of a source; called where depth, tensor names or types matter.

    Raises:
        RecipeError: for what is not understood, with line and key path.
        SourceError: when a source cannot be read.
    """
    try:
        config = document.parse(Config)
        return _Import(config, look).imported()
    except RecipePathError as fault:
        raise RecipeError(str(document.error(fault.path, fault.text))) from None
    except RecipeError:
        raise
    except ConfigError as error:
        raise RecipeError(str(error)) from None


class _Import:
    def __init__(self, config: Config, look: Look) -> None:
        self._config = config
        self._plain = Plain(config)
        self._places = Places(self._plain, look)

    def imported(self) -> Imported:
        """Return the recipe and what is to be said about it."""
        plain, config = self._plain, self._config
        blends = self._uniform() if self._places.is_uniform else self._in_places()
        data: dict[str, Any] = {
            "recipe": 1,
            "sources": {alias: one.model_dump(exclude_defaults=True) for alias, one in plain.aliases.sources.items()},
            "base": plain.aliases.base,
            "dtype": self._dtype(),
            "tokenizer": tokenizer_of(config, plain.aliases),
            **_without_base(blends, plain.aliases.base),
        }
        if config.chat_template is not None:
            raise RecipePathError(
                ("chat_template",),
                "chat templates are those of the tokenizer here; leave this out, or change the output",
            )
        recipe = Recipe.from_mapping({key: value for key, value in data.items() if value is not None})
        return Imported(
            recipe, tuple(dict.fromkeys([*plain.notes, *self._places.notes, *self._arithmetic(data["dtype"])]))
        )

    def _dtype(self) -> str:
        for key in ("out_dtype", "dtype"):
            name = getattr(self._config, key)
            if name is not None:
                if name not in _DTYPES:
                    raise RecipePathError((key,), f"{name!r} is no type of weights{did_you_mean(name, _DTYPES)}")
                return str(name)
        return self._places.facts(next(iter(self._plain.aliases.sources))).dtype

    def _arithmetic(self, stored: str) -> Iterable[str]:
        dtype = self._config.dtype or stored
        methods = sorted({piece.method.name for piece in self._plain.slices} - set(_IN_FLOAT32))
        if dtype != "float32" and methods:
            yield f"dtype: mergekit computes {', '.join(methods)} in {dtype}; here it is float32, rounded once"

    # ---- blends

    def _uniform(self) -> dict[str, Any]:
        return {"blend": self._places.uniform()}

    def _in_places(self) -> dict[str, Any]:
        layers = list(self._places.layers())
        found = self._layers(layers)
        for part in ("embeddings", "head"):
            found[part] = self._part(self._places.outside(part), found.get("blend"))
        return found

    def _layers(self, layers: list[Place]) -> dict[str, Any]:
        described = [parts_of(place.tensors) for place in layers]
        alike = all(one == described[0] for one in described)
        if alike and self._plain.slices[0].length is None:
            default, modules, exceptions = described[0]
            universe = [tensor for place in layers for tensor in place.tensors]
            names = [tensor.name for tensor in universe]
            rules = rules_of(universe, exceptions, [*names, *self._outside_names()])
            return {"blend": default, "modules": written(modules, default), "tensors": rules or None}
        usual = _usual(
            blend for (blend, _, _), place in zip(described, layers, strict=True) if not self._is_copy(place)
        )
        entries = []
        for place, (default, modules, exceptions) in zip(layers, described, strict=True):
            entry: dict[str, Any] = {"take": dict(place.take)}
            if not self._is_copy(place):
                alone = len(place.take) == 1 and len(self._plain.aliases.sources) > 1
                changed = default if alone else _changed(default, usual)
                own = {
                    "blend": changed or None,
                    "modules": written(modules, default),
                    "tensors": rules_of(place.tensors, exceptions, [tensor.name for tensor in place.tensors]) or None,
                }
                entry |= {key: value for key, value in own.items() if value is not None}
            entries.append(entry)
        return {"blend": usual, "layers": entries}

    def _outside_names(self) -> tuple[str, ...]:
        return tuple(self._places.facts(next(iter(self._plain.aliases.sources))).outside)

    def _is_copy(self, place: Place) -> bool:
        """Tell whether a layer is what it is when nothing is said: a copy of the one source that it takes."""
        if len(place.take) != 1 or len(self._plain.aliases.sources) == 1:
            return False
        return all(is_copy(tensor.blend) for tensor in place.tensors)

    def _part(self, place: Place, outer: Settings | None) -> dict[str, Any] | None:
        if not place.tensors:
            return None
        default = _usual((tensor.blend for tensor in place.tensors), outer)
        found: dict[str, Any] = {}
        take = [alias for alias in self._plain.aliases.sources if alias in place.take]
        if len(take) < len(self._plain.aliases.sources):
            found["take"] = take
        if default is not None and not (found and len(take) == 1 and is_copy(default)):
            changed = default if found else _changed(default, outer)
            found |= {"blend": changed} if changed else {}
        names = [tensor.name for tensor in place.tensors]
        exceptions = {tensor.name: tensor.blend for tensor in place.tensors if tensor.blend != default}
        rules = rules_of(place.tensors, exceptions, names)
        return found | ({"tensors": rules} if rules else {}) or None


def _usual(blends: Iterable[Settings], outer: Settings | None = None) -> Settings | None:
    """Return the most frequent blend; of several the one around them, else the first."""
    found = list(blends)
    counts = Counter(repr(blend) for blend in found)
    return max(found, key=lambda blend: (counts[repr(blend)], blend == outer), default=None)


def _changed(blend: Settings, outer: Settings | None) -> Settings:
    """Return what a blend changes of the one around it."""
    if outer is None or outer["method"] != blend["method"]:
        return blend
    return {key: value for key, value in blend.items() if outer.get(key) != value}


def _without_base(data: Any, base: str | None) -> Any:
    """Leave out the bases of blends where all are the recipe's."""
    if any(found != base for found in _bases(data)):
        return data
    return _dropped(data)


def _bases(data: Any) -> Iterable[str]:
    if isinstance(data, Mapping):
        if isinstance(data.get("base"), str):
            yield data["base"]
        for value in data.values():
            yield from _bases(value)
    elif isinstance(data, list):
        for value in data:
            yield from _bases(value)


def _dropped(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _dropped(value) for key, value in data.items() if not (key == "base" and isinstance(value, str))}
    return [_dropped(value) for value in data] if isinstance(data, list) else data
