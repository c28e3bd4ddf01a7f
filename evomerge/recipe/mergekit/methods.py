"""mergekit's methods: their parameters with defaults, and the native blend that each of them comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.recipe.mergekit.document import Scalar
from evomerge.recipe.mergekit.settings import Kind

Settings = dict[str, Any]
"""A native blend as plain data: `method`, `base` and parameters."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a mergekit method."""

    name: str
    kind: Kind = "float"
    default: Scalar | None = None
    """None: required, unless `optional`."""
    per_model: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one tensor is merged from, with every parameter resolved."""

    sources: tuple[str, ...]
    """Aliases, the base not among them unless the method treats it like any other."""
    base: str | None
    shared: Mapping[str, Any]
    each: Mapping[str, Mapping[str, Any]]
    """Parameter -> alias -> value."""
    notes: list[str] = field(default_factory=list)
    """Where differences from mergekit are written down."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of mergekit."""

    name: str
    base: Literal["required", "optional", "ignored"]
    blend: Callable[[Inputs], Settings]
    """To the native blend."""
    parameters: tuple[Parameter, ...] = ()
    sources: tuple[int, int | None] = (1, None)
    """Fewest and most sources, the base not counted unless it is treated like any other."""


_WEIGHT = Parameter("weight", per_model=True)


def copy(alias: str) -> Settings:
    """Return the blend that takes one source as it is."""
    return {"method": "linear", "weight": {alias: 1.0}, "normalize": True}


def is_copy(blend: Settings) -> bool:
    """Tell whether a blend takes one source as it is."""
    weight = blend.get("weight")
    return isinstance(weight, Mapping) and len(weight) == 1 and blend == copy(next(iter(weight)))


def _linear(inputs: Inputs) -> Settings:
    return {"method": "linear", "weight": inputs.each["weight"], "normalize": inputs.shared["normalize"]}


def _passthrough(inputs: Inputs) -> Settings:
    (alias,) = inputs.sources
    scale = inputs.each["scale"][alias]
    if scale is None or scale == 1:
        return copy(alias)
    return {"method": "linear", "weight": {alias: scale}, "normalize": False}


def _slerp(inputs: Inputs) -> Settings:
    # mergekit leaves the arc for the chord at this cosine; kept, so that the numbers are its own.
    return {"method": "slerp", "base": inputs.base, "t": inputs.shared["t"], "straight": 0.9995}


def _nuslerp(inputs: Inputs) -> Settings:
    weight = dict(inputs.each["weight"])
    first, second = inputs.sources
    if abs(weight[first] + weight[second]) < 1e-6:
        weight = {first: 1.0, second: 1.0}
    scope = "tensor"
    if not inputs.shared["nuslerp_flatten"]:
        # Its names are the wrong way round: with row_wise, the angle is that of each column.
        scope = "column" if inputs.shared["nuslerp_row_wise"] else "row"
        if inputs.shared["nuslerp_row_wise"]:
            inputs.notes.append("nuslerp_row_wise takes the angle of each column in mergekit, and so it is here")
    if 0.0 in weight.values():
        return copy(second if weight[first] == 0 else first)
    return {**_between("nuslerp", inputs), "weight": weight, "scope": scope}


def _multislerp(inputs: Inputs) -> Settings:
    if len(inputs.sources) == 1:
        return copy(inputs.sources[0])
    return {
        **_between("multislerp", inputs),
        "weight": inputs.each["weight"],
        "normalize": inputs.shared["normalize_weights"],
    }


def _between(method: str, inputs: Inputs) -> Settings:
    """Return the method between models, or, with a base, between task vectors."""
    return {"method": method} if inputs.base is None else {"method": f"task_{method}", "base": inputs.base}


def _karcher(inputs: Inputs) -> Settings:
    return {
        "method": "karcher",
        "weight": dict.fromkeys(inputs.sources, 1.0),
        "iterations": inputs.shared["max_iter"],
        "tolerance": inputs.shared["tol"],
    }


def _model_stock(inputs: Inputs) -> Settings:
    inputs.notes.append(
        "model_stock: mergekit moves tensors whose differences are tiny (norms below 1e-3) back to the base; here they "
        "are merged like all others"
    )
    scope = "row" if inputs.shared["filter_wise"] else "tensor"
    return {"method": "model_stock", "base": inputs.base, "scope": scope, "clip": False}


def _sce(inputs: Inputs) -> Settings:
    share = inputs.shared["select_topk"]
    inputs.notes.append(
        "sce: mergekit weights all sources alike in tensors where the mean squared differences sum to less than 1e-6, "
        "and shrinks what is weighted less than that; here the weights hold at any size"
    )
    if share <= 0 and inputs.base is not None:
        return copy(inputs.base)
    return {"method": "sce", "base": inputs.base, "density": min(share, 1.0), "mask_scope": "all", "scale": 1.0}


def _ram(inputs: Inputs) -> Settings:
    return {"method": "ram", "base": inputs.base, "epsilon": inputs.shared["epsilon"]}


def _ramplus(inputs: Inputs) -> Settings:
    return {
        "method": "ramplus",
        "base": inputs.base,
        **{name: inputs.shared[name] for name in ("epsilon", "r", "alpha")},
    }


def _nearswap(inputs: Inputs) -> Settings:
    return {"method": "nearswap", "base": inputs.base, "t": max(0.0, inputs.shared["t"])}


def _arcee_fusion(inputs: Inputs) -> Settings:
    inputs.notes.append(
        "arcee_fusion: mergekit draws a sample for its quantiles in tensors of more than 10^6 weights, without a seed, "
        "and loses the divergence of close models to rounding; here both are exact"
    )
    return {"method": "arcee_fusion", "base": inputs.base, "spread": 1.5}


@dataclass(frozen=True, slots=True)
class _TaskVectors:
    """The family of task arithmetic: a sum of task vectors, thinned out or not, elected or not."""

    name: str
    elects: bool = False
    rescale: Literal["", "l1"] = ""
    """What native rescale a true `rescale` comes to; empty: the native method has none."""
    own: tuple[tuple[str, str], ...] = ()
    """mergekit's parameter -> native parameter, per model."""

    def __call__(self, inputs: Inputs) -> Settings:
        shared, weight = inputs.shared, dict(inputs.each["weight"])
        blend: Settings = {"method": self.name, "base": inputs.base, "weight": weight}
        if self.own:
            density = {alias: min(float(value), 1.0) for alias, value in inputs.each["density"].items()}
            for alias in [alias for alias, value in density.items() if value <= 0]:
                if shared["normalize"] and not self.elects and weight[alias] != 0:
                    raise ValueError(f"density 0 with normalize is not understood for {self.name}; leave {alias!r} out")
                weight[alias], density[alias] = 0.0, 1.0
            blend["density"] = density
        elif any(value != 1 for value in inputs.each["density"].values()):
            inputs.notes.append(f"{self.name}: the density is without effect in mergekit, and left out here")
        for theirs, ours in self.own[1:]:
            blend[ours] = dict(inputs.each[theirs])
        if self.rescale:
            blend["rescale"] = self.rescale if shared["rescale"] else "none"
        blend |= {"scale": shared["lambda"], "normalize": shared["normalize"]}
        if self.name in ("ties", "breadcrumbs", "breadcrumbs_ties"):
            blend["scope"] = "tensor"
        if self.elects:
            blend["zero_sign"] = "positive"
        self._differences(inputs, weight)
        return blend

    def _differences(self, inputs: Inputs, weight: Mapping[str, float]) -> None:
        if self.elects and inputs.shared["normalize"] and any(value < 0 for value in weight.values()):
            inputs.notes.append(
                f"{self.name}: with negative weights mergekit divides by their signed sum, which may turn the sign "
                "that was elected; here by the sum of their sizes"
            )
        if self.rescale and self.name.startswith(("dare", "della")):
            inputs.notes.append(
                f"{self.name}: each mask depends on tensor, source and seed alone, and mergekit's on all drawn before"
            )


_DENSITY = Parameter("density", default=1.0, per_model=True)


def _task_vectors(
    name: str,
    *own: Parameter,
    native: tuple[tuple[str, str], ...] = (),
    elects: bool = False,
    rescales: bool = False,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    parameters = (
        _WEIGHT,
        _DENSITY,
        *own,
        Parameter("normalize", "bool", normalize),
        Parameter("rescale", "bool", rescale),
        Parameter("lambda", default=1.0),
        Parameter("int8_mask", "bool", default=False),
    )
    blend = _TaskVectors(name, elects, "l1" if rescales else "", native)
    return Method(name, "required", blend, parameters)


_BAND = (("density", "density"), ("gamma", "top"))
_CHANCE = (("density", "density"), ("epsilon", "epsilon"))
_GAMMA = Parameter("gamma", default=0.01, per_model=True)
_WINDOW = Parameter("epsilon", default=0.15, per_model=True)
_SMALL = Parameter("epsilon", default=1e-5)

_METHODS: Sequence[Method] = (
    Method("linear", "ignored", _linear, (_WEIGHT, Parameter("normalize", "bool", default=True))),
    Method("slerp", "required", _slerp, (Parameter("t"),), (1, 1)),
    Method(
        "nuslerp",
        "optional",
        _nuslerp,
        (
            _WEIGHT,
            Parameter("nuslerp_flatten", "bool", default=True),
            Parameter("nuslerp_row_wise", "bool", default=False),
        ),
        (2, 2),
    ),
    Method(
        "multislerp",
        "optional",
        _multislerp,
        (_WEIGHT, Parameter("normalize_weights", "bool", default=True), Parameter("eps", default=1e-8)),
    ),
    Method("karcher", "ignored", _karcher, (Parameter("max_iter", "int", 10), Parameter("tol", default=1e-5))),
    _task_vectors("task_arithmetic"),
    _task_vectors("ties", native=(("density", "density"),), elects=True, rescales=True, normalize=True),
    _task_vectors("dare_linear", native=(("density", "density"),), rescales=True, rescale=True),
    _task_vectors("dare_ties", native=(("density", "density"),), elects=True, rescales=True, rescale=True),
    _task_vectors("breadcrumbs", _GAMMA, native=_BAND, rescales=True),
    _task_vectors("breadcrumbs_ties", _GAMMA, native=_BAND, elects=True, rescales=True),
    _task_vectors("della", _WINDOW, native=_CHANCE, elects=True, rescales=True, normalize=True, rescale=True),
    _task_vectors("della_linear", _WINDOW, native=_CHANCE, rescales=True, rescale=True),
    Method(
        "sce",
        "required",
        _sce,
        (Parameter("select_topk", default=1.0), Parameter("int8_mask", "bool", default=False)),
    ),
    Method("model_stock", "required", _model_stock, (Parameter("filter_wise", "bool", default=False),), (2, None)),
    Method("ram", "required", _ram, (_SMALL,)),
    Method("ramplus_tl", "required", _ramplus, (_SMALL, Parameter("r", default=0.1), Parameter("alpha", default=0.2))),
    Method("nearswap", "required", _nearswap, (Parameter("t"),), (1, 1)),
    Method("arcee_fusion", "required", _arcee_fusion, (), (1, 1)),
    Method("passthrough", "ignored", _passthrough, (Parameter("scale", per_model=True, optional=True),), (1, 1)),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}
"""mergekit 0.1.5's methods by name."""
PARAMETERS: frozenset[str] = frozenset(parameter.name for method in _METHODS for parameter in method.parameters)
"""Every parameter of any method."""
