"""The reference page of the merge methods, written from their metadata.

`python -m evomerge.operators.reference > docs/operators.md` renews it.
"""

from __future__ import annotations

import sys

from evomerge.operators import specs
from evomerge.operators.metadata import OperatorSpec, Parameter

_INTRODUCTION = """\
# Merge methods

This page is written from the methods' own metadata (`python -m evomerge.operators.reference >
docs/operators.md`); `evomerge operators --json` prints the same as data. θ_0 is the base, θ_i a source, τ_i =
θ_i - θ_0 its task vector.

Every method computes in float32 (angles and norms in float64), and the result is rounded to the recipe's
dtype once. A parameter marked *per source* takes one value, or a mapping from source alias to value. A
parameter is searched over its range unless the space names another; one without a range is searched only when
a space names it.
"""

_NOTES = """\
## Where these differ from other implementations

* **Equal recipes give equal bits.** Sources are summed in the order of their content hashes, so listing them
  in another order, or leaving out one of weight 0, does not change one bit.
* **slerp** follows the arc for every angle above 1e-6. mergekit interpolates linearly where |cos φ| > 0.9995,
  which holds for most models tuned from one base. The two differ by φ²/8 of the length at t = 0.5: 1.2e-5 at
  cos φ = 0.99995, 1.25e-4 at the limit. Opposite tensors and zero tensors are interpolated linearly.
* **ties** keeps every entry whose magnitude equals the threshold, so that equal magnitudes (common in
  bfloat16) have equal fates: the released code keeps k + 1 entries, mergekit exactly k by an unstable sort.
  At least one entry of a tensor is kept. Where the votes cancel, the merged entry is 0; `zero_sign` selects
  another rule (mergekit: positive). The mean divides by Σ |w_i| of the sources that agree: for weights that
  are not negative that is the usual Σ w_i, and for others the result keeps the elected sign.
* **dare_linear, dare_ties** draw masks from a counter-based generator keyed by (recipe seed, parameter name,
  source content): the same on every device, whatever the sharding or the order of the sources. Masks nest:
  what is kept at one density is kept at every higher one, so a score is a smoother function of the density.
  Two sources of the same content have the same mask.
* A sum of weights nearer to 0 than 1e-8 divides by 1 (mergekit's rule), in `linear` and wherever else
  `normalize` divides by the sum of all weights. `linear` with no weight at all gives zeros, which the sanity
  gate rejects.
"""


def markdown() -> str:
    """Return the whole page."""
    return "\n".join([_INTRODUCTION, *(_method(spec) for spec in specs()), _NOTES])


def _method(spec: OperatorSpec) -> str:
    needs = "Needs a base" if spec.base == "required" else "Ignores the base"
    count = f"exactly {spec.min_sources}" if spec.min_sources == spec.max_sources else f"{spec.min_sources}+"
    beside = " beside the base" if spec.base == "required" else ""
    region = (
        "Elementwise."
        if spec.scope == "element"
        else f"The widest region that an element depends on is the {spec.scope}."
    )
    masks = " Draws random masks." if spec.random else ""
    lines = [
        f"## {spec.name}",
        "",
        spec.summary,
        "",
        f"*{spec.paper}.* {needs}. Sources{beside}: {count}. {region}{masks}",
        "",
        "| parameter | values | default | searched over | meaning |",
        "|---|---|---|---|---|",
        *(_row(parameter) for parameter in spec.parameters),
        "",
    ]
    return "\n".join(lines)


def _row(parameter: Parameter) -> str:
    name = f"`{parameter.name}`{' (per source)' if parameter.per_source else ''}"
    search = "-" if parameter.search is None else f"{parameter.search[0]:g} to {parameter.search[1]:g}"
    default = str(parameter.default).lower() if parameter.kind == "bool" else str(parameter.default)
    return f"| {name} | {_values(parameter)} | {default} | {search} | {parameter.summary} |"


def _values(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        return ", ".join(parameter.choices)
    if parameter.kind == "bool":
        return "true, false"
    if parameter.low is None and parameter.high is None:
        return "any number"
    return parameter.range_text()


if __name__ == "__main__":
    sys.stdout.write(markdown())
