"""Native blends as methods of mergekit, where mergekit computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.recipe.blends import Blend


@dataclass(frozen=True, slots=True)
class Written:
    """What mergekit needs for one tensor."""

    method: str
    base: str | None
    shared: Mapping[str, Any]
    each: Mapping[str, Mapping[str, Any]]
    """Parameter -> alias -> value, for the sources other than the base."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """Parameter -> what it is for a source that takes no part; a method without weights has none."""


class _UnlikeError(ValueError):
    """mergekit has no such thing; the text says which."""


def _each(blend: Blend, **names: str) -> dict[str, dict[str, Any]]:
    """Return mergekit's parameter -> alias -> value for native per-source parameters."""
    found = {}
    for theirs, ours in names.items():
        values = blend.params[ours]
        found[theirs] = dict(zip(blend.sources, values if isinstance(values, tuple) else (), strict=True))
    return found


def _only(blend: Blend, name: str, *allowed: bool | float | str) -> None:
    value = blend.params[name]
    if value not in allowed:
        wanted = " or ".join(str(one) for one in allowed)
        raise _UnlikeError(f"mergekit's {blend.method} has {name} {wanted} alone, not {value}")


_NO_PART = {"weight": 0.0, "density": 1.0, "gamma": 0.01, "epsilon": 0.15}


def _linear(blend: Blend, notes: list[str]) -> Written:  # noqa: ARG001  one form for all
    shared = {"normalize": blend.params["normalize"]}
    return Written("linear", None, shared, _each(blend, weight="weight"), _NO_PART)


def _slerp(blend: Blend, notes: list[str]) -> Written:
    if blend.params["straight"] != 0.9995:
        notes.append("slerp: mergekit interpolates linearly where |cosine| > 0.9995, at most 1.3e-4 of a tensor off")
    return Written("slerp", blend.base, {"t": blend.params["t"]}, {})


def _nuslerp(blend: Blend, notes: list[str]) -> Written:  # noqa: ARG001
    scope = blend.params["scope"]
    # With row_wise, mergekit takes columns.
    shared = {"nuslerp_flatten": scope == "tensor", "nuslerp_row_wise": scope == "column"}
    return Written("nuslerp", blend.base, shared, _each(blend, weight="weight"), {"weight": 0.0})


def _multislerp(blend: Blend, notes: list[str]) -> Written:  # noqa: ARG001
    shared = {"normalize_weights": blend.params["normalize"]}
    return Written("multislerp", blend.base, shared, _each(blend, weight="weight"), {"weight": 0.0})


def _karcher(blend: Blend, notes: list[str]) -> Written:  # noqa: ARG001
    weights = blend.params["weight"]
    if isinstance(weights, tuple) and len(set(weights)) > 1:
        raise _UnlikeError("mergekit's karcher weights all sources alike")
    shared = {"max_iter": blend.params["iterations"], "tol": blend.params["tolerance"]}
    return Written("karcher", None, shared, {})


def _task_vectors(**names: str) -> Callable[[Blend, list[str]], Written]:
    def write(blend: Blend, notes: list[str]) -> Written:
        shared = {"lambda": blend.params["scale"], "normalize": blend.params["normalize"]}
        if "scope" in blend.params:
            _only(blend, "scope", "tensor")
        if "rescale" in blend.params:
            shared["rescale"] = blend.params["rescale"] == "l1"
        if "zero_sign" in blend.params:
            _only(blend, "zero_sign", "zero", "positive")
            if blend.params["zero_sign"] == "zero":
                notes.append(
                    f"{blend.method}: where votes cancel exactly, mergekit takes the positive side, not nothing"
                )
            weights = blend.params["weight"]
            if blend.params["normalize"] and isinstance(weights, tuple) and any(float(one) < 0 for one in weights):
                raise _UnlikeError(f"mergekit's {blend.method} divides by the signed sum of weights")
        return Written(blend.method, blend.base, shared, _each(blend, weight="weight", **names), _NO_PART)

    return write


def _sce(blend: Blend, notes: list[str]) -> Written:
    _only(blend, "scale", 1.0)
    _only(blend, "mask_scope", "all")
    notes.append("sce: mergekit weights all sources alike where the mean squared differences sum to less than 1e-6")
    return Written("sce", blend.base, {"select_topk": blend.params["density"]}, {})


def _model_stock(blend: Blend, notes: list[str]) -> Written:
    _only(blend, "clip", False)  # noqa: FBT003  the value that is allowed
    notes.append("model_stock: mergekit moves tensors whose differences are tiny (norms below 1e-3) back to the base")
    return Written("model_stock", blend.base, {"filter_wise": blend.params["scope"] == "row"}, {})


def _plain(name: str, *names: str) -> Callable[[Blend, list[str]], Written]:
    def write(blend: Blend, notes: list[str]) -> Written:  # noqa: ARG001
        return Written(name, blend.base, {key: blend.params[key] for key in names}, {})

    return write


_WRITERS: Mapping[str, Callable[[Blend, list[str]], Written]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "task_nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "task_multislerp": _multislerp,
    "karcher": _karcher,
    "task_arithmetic": _task_vectors(),
    "ties": _task_vectors(density="density"),
    "breadcrumbs": _task_vectors(density="density", gamma="top"),
    "breadcrumbs_ties": _task_vectors(density="density", gamma="top"),
    "sce": _sce,
    "model_stock": _model_stock,
    "ram": _plain("ram", "epsilon"),
    "ramplus": _plain("ramplus_tl", "epsilon", "r", "alpha"),
    "nearswap": _plain("nearswap", "t"),
}
_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def written(blend: Blend, notes: list[str]) -> Written:
    """Return a blend in mergekit's terms; differences that are tiny are noted.

    Raises:
        ValueError: where mergekit has no such method or parameter; the text says which.
    """
    if blend.method in _RANDOM:
        raise _UnlikeError(f"mergekit draws other masks for {blend.method}, which would make another model")
    if blend.method not in _WRITERS:
        raise _UnlikeError(f"mergekit has no method {blend.method!r}")
    return _WRITERS[blend.method](blend, notes)


def written_copy(alias: str, like: Written, sources: Sequence[str]) -> Written:
    """Return a copy of one source in terms of the method that the rest of the file has.

    Args:
        alias: what is copied.
        like: what stands elsewhere in the file.
        sources: all sources of the slice, the base not among them.

    Raises:
        ValueError: where the method cannot copy.
    """
    shared, each = dict(like.shared), {name: dict.fromkeys(sources, value) for name, value in like.rest.items()}
    if like.method == "slerp":
        shared["t"] = 0.0 if alias == like.base else 1.0
    elif like.method == "nearswap" and alias == like.base:
        shared["t"] = 0.0
    elif "weight" not in like.rest or (alias == like.base and like.method in ("nuslerp", "multislerp")):
        raise _UnlikeError(f"mergekit's {like.method} cannot leave {alias!r} as it is in one place only")
    elif alias != like.base:
        each["weight"] = {name: float(name == alias) for name in sources}
        if "density" in each:
            each["density"][alias] = 1.0
    if "lambda" in shared and alias != like.base:
        shared["lambda"] = 1.0
    each = {name: values for name, values in each.items() if name in like.each}
    return Written(like.method, like.base, shared, each, like.rest)
