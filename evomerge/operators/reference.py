"""The reference page of the merge methods, written from their metadata.

`python -m evomerge.operators.reference > docs/operators.md` renews it.
"""

from __future__ import annotations

import sys
from typing import get_args

from evomerge.operators import specs
from evomerge.operators.metadata import Invariant, OperatorSpec, Parameter

_INTRODUCTION = """\
# Merge methods

This page is written from the methods' own metadata (`python -m evomerge.operators.reference >
docs/operators.md`); `evomerge operators --json` prints the same as data. θ_0 is the base, θ_i a source, τ_i =
θ_i - θ_0 its task vector.

Every method computes in float32 (angles and norms in float64), and the result is rounded to the recipe's
dtype once. A parameter marked *per source* takes one value, or a mapping from source alias to value. A
parameter is searched over its range unless the space names another; one without a range is searched only when
a space names it.

LiNeS and a global scale go on top of any of these: [parameter_space.md](parameter_space.md).
"""

_LAWS = """\
## Laws

What holds under default parameters; the tests of each method check every *yes* (`evomerge.testing.operators`).

* permutation: sources in another order give the same bits.
* scale: every tensor times c, the base too, gives c times the result; task_scale: the same of task vectors.
* translation: one tensor added to every input is added to the result.
* neutral_weight: a source of weight 0 gives the same bits as no such source.
* idempotent: inputs all equal, the base too, give that tensor; single: one source gives that source; identical: equal
  sources give that source.
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
* **model_stock** has no absolute lower bound for norms (mergekit's returns tensors of light fine-tunes to the
  base) and stops at the base where the angles are obtuse on average; `clip: false` goes beyond it, as mergekit.
* **arcee_fusion** takes exact quantiles of tensors of any size (mergekit: of a sample without a seed), and a
  divergence in float64. **nearswap** is θ_0 + clip(δ, -t, t) for every t.
* **ram, ramplus** count a difference above `epsilon` as a change: an absolute size, as in mergekit. ramplus
  counts shares tensor by tensor (mergekit's `ramplus_tl`).
* **consensus** is Consensus Merging over the sum of task vectors. **tall_mask** with one source retrieved is
  that task's model, with several the union of their masks.
* **varm** gives a source that did not change weight 0. **sce** selects everything where the sources do not
  differ, keeps entries that equal the threshold, and has no absolute lower bound for weights; `mask_scope:
  coefficient` selects for the weights alone, as the released code does.
* **pcb** ranks in each tensor, or over the whole model (`scope: global`, the paper) for a few passes over it. Its
  agreement term is divided by the task vectors' mean square, so that their size does not matter; the released code is
  the limit of a small `gain`.
* **widen** gives columns that moved alike the mean of their ranks; `ties: position` is the released order.
* **mwa** could not be compared with the paper's map from metric to weight: its families have names of their own.
* **tsv_m, tsv_outlier, iso_c, iso_cts, star, knots, knots_dare, wudi, swudi, optmerge, opcm, doge** decompose
  matrices: tensors of two dimensions within the layers. Norms, biases, embeddings and the head become λ times the mean
  of the w_i τ_i, or stay the base's (`others`); in opcm they are summed at the mean length. Matrices are read as
  (outputs, inputs) however the model stores them. Decompositions use the float64 Gram matrix of the smaller side;
  singular values below 1e-6 of the largest, or below what rounding to float32 makes, are 0, so low-rank sources gain no
  arbitrary directions. Where sources are LoRA adapters on the base, QR factors and the SVD of the small core take its
  place. What does not depend on weights and scales is kept from one candidate of a search to the next, and large
  decompositions for good, in files of the cache folder (`$EVOMERGE_CACHE`, or `~/.cache/evomerge`). They take at most a
  quarter of what the disk has left without them; those unused for longest go first.
* **wudi** is the exact minimum where the released code takes 300 steps of Adam, whose result depends on the size of
  the weights; **swudi** and **optmerge** follow the gradient flow, `time` in place of a number of steps. A weight of 0
  takes a source out of the loss too, so the result jumps there.
* **opcm** scales each tensor by its own norms, or all by those of the whole model (`scope: global`, the paper), which
  takes the time of a second merge. **doge** takes plain gradient steps of a size that the task vectors set, in place of
  Adam's. **tsv_outlier** is not R-TSVM: only that paper's abstract could be read.
* **knots_dare** drops entries of the parts aligned by KnOTS; a direction's sign is arbitrary, and does not matter.
* **evo_merging** works on the factors of adapters, which must have one rank. All weights times -1 are the same merge.
* A sum of weights nearer to 0 than 1e-8 divides by 1 (mergekit's rule), in `linear` and wherever else
  `normalize` divides by the sum of all weights. `linear` with no weight at all gives zeros, which the sanity
  gate rejects.
"""


def markdown() -> str:
    """Return the whole page."""
    return "\n".join([_INTRODUCTION, *(_method(spec) for spec in specs()), _laws(), _NOTES])


def _laws() -> str:
    """Return the table of the laws that methods obey."""
    laws = get_args(Invariant)
    rows = (
        f"| {spec.name} | {' | '.join('yes' if law in spec.invariants else '' for law in laws)} |" for spec in specs()
    )
    return "\n".join([_LAWS, f"| method | {' | '.join(laws)} |", f"|---{'|---' * len(laws)}|", *rows, ""])


def _method(spec: OperatorSpec) -> str:
    needs = "Needs a base" if spec.base == "required" else "Ignores the base"
    needs += ", and every source is a LoRA adapter on it" if spec.adapters else ""
    count = f"exactly {spec.min_sources}" if spec.min_sources == spec.max_sources else f"{spec.min_sources}+"
    beside = " beside the base" if spec.base == "required" else ""
    region = (
        "Elementwise."
        if spec.scope == "element"
        else f"The widest region that an element depends on is the {spec.scope}."
    )
    masks = " Draws random masks." if spec.random else ""
    kinds = [" or ".join(f"`{kind}`" for kind in _kinds(spec, name)) for name in spec.needs]
    measured = "".join(f" Needs the [statistic](statistics.md) {kind} of each source." for kind in kinds)
    lines = [
        f"## {spec.name}",
        "",
        spec.summary,
        "",
        f"*{spec.paper}.* {needs}. Sources{beside}: {count}. {region}{masks}{measured}",
        "",
        "| parameter | values | default | searched over | meaning |",
        "|---|---|---|---|---|",
        *(_row(parameter) for parameter in spec.parameters),
        "",
    ]
    return "\n".join(lines)


def _kinds(spec: OperatorSpec, name: str) -> tuple[str, ...]:
    """Return the kinds of statistic that one entry of `needs` may stand for."""
    return next((parameter.choices for parameter in spec.parameters if parameter.name == name), (name,))


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
