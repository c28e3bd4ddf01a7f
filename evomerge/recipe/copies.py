"""Which blends are copies: a blend simplified to what it comes to."""

from __future__ import annotations

from dataclasses import replace

from evomerge import operators
from evomerge.operators.metadata import SMALLEST_SUM, Resolved
from evomerge.recipe.blends import Blend, copy_of


def simplified(blend: Blend) -> Blend:
    """Return the blend without sources of weight 0; a copy of one source, whatever the method, as such."""
    lines = blend.lines
    if lines is None:
        return _simplified(blend)
    if lines.is_zero:
        return copy_of(lines.base)
    plain = _simplified(replace(blend, lines=None))
    return plain if lines.is_one or copied(plain) == lines.base else replace(plain, lines=lines)


def _simplified(blend: Blend) -> Blend:
    weights = blend.params.get("weight")
    if not isinstance(weights, tuple):
        return blend
    kept = [index for index, weight in enumerate(weights) if weight != 0]
    if not kept and blend.base is not None:
        return copy_of(blend.base)
    if kept and len(kept) < len(weights):
        params = {
            name: tuple(value[index] for index in kept) if isinstance(value, tuple) else value
            for name, value in blend.params.items()
        }
        blend = Blend(blend.method, tuple(blend.sources[index] for index in kept), blend.base, params)
    return copy_of(blend.sources[0]) if _is_copy(blend) else blend


def copied(blend: Blend) -> str | None:
    """Return the alias that a simplified blend copies, or None."""
    return blend.sources[0] if len(blend.sources) == 1 and blend == copy_of(blend.sources[0]) else None


def _is_copy(blend: Blend) -> bool:
    """Tell whether a blend gives its only source bit by bit (the planner copies it in just these cases)."""
    spec = operators.get(blend.method)
    weights = blend.params["weight"]
    if len(blend.sources) != 1 or "single" not in spec.invariants or not isinstance(weights, tuple):
        return False
    others = (name for name in blend.params if name not in ("weight", "normalize"))
    if any(not _is_default(spec.parameter(name).default, blend.params[name]) for name in others):
        return False
    if blend.params.get("normalize") is True:
        return abs(float(weights[0])) >= SMALLEST_SUM
    return weights[0] == 1.0


def _is_default(default: Resolved, value: Resolved) -> bool:
    return all(one == default for one in value) if isinstance(value, tuple) else value == default
