"""Task vectors weighted by how much they changed: VaRM and SCE, of the FuseChat models.

Legend: θ_0 base (the pivot), τ_i = θ_i - θ_0, w_i weight with Σ w_i = 1, ρ share of entries selected, λ scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.inputs import number
from evomerge.operators.kernels.ranks import ranked
from evomerge.operators.kernels.selection import kept_count
from evomerge.operators.kernels.tasks import Tasks, ordered_sum, total
from evomerge.operators.metadata import Resolved


def varm(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + Σ w_i τ_i with w_i ∝ mean(τ_i²)^γ (Wan et al. 2024, FuseChat, arXiv:2402.16107: γ = 1).

    The mean is over the tensor (the paper), or of the entry alone with `scope: element`; `statistic: abs` takes
    mean |τ_i|. Deviations: a source that did not change has weight 0 (the released code then weights all alike);
    the exponent γ replaces the code's softmax of the statistic over a temperature, which has the unit of a squared
    weight; granularities beyond one tensor are not offered.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, context)
    power, degree = number(params, "power"), 2 if params["statistic"] == "square" else 1
    if params["scope"] == "tensor":
        weights = _shares(tasks.power_sums(degree), power)
        return tasks.merge(lambda deltas, _: total(deltas, weights))

    def by_element(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        sizes = torch.stack(deltas).abs_()
        sizes.div_(sizes.amax(dim=0).clamp_min_(torch.finfo(torch.float32).tiny))
        shares = sizes.pow(degree * power).mul_(sizes > 0)
        shares.div_(shares.sum(dim=0).clamp_min_(torch.finfo(torch.float32).tiny))
        return total([delta.mul_(share) for delta, share in zip(deltas, shares, strict=True)])

    return tasks.merge(by_element)


def sce(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ Σ w_i τ_i m_i / Σ w_i m_i (Wan et al. 2024, FuseChat, arXiv:2408.07990: λ = 1).

    Select: of the entries whose variance over the sources is not 0, the int(ρ·n) largest variances, at least one.
    Calculate: w_i ∝ mean of τ_i² over the selected. Erase: m_i where τ_i has the sign of Σ τ_i (0 counts as positive).
    `mask_scope: all` sets what was not selected to 0 (mergekit); `coefficient` selects for the weights alone (the
    released code). Deviations: entries that equal the threshold are all selected; where no variance differs from 0
    (one source, or equal ones) everything is selected, mergekit nothing; no divisor has an absolute lower bound,
    where mergekit's turns ordinary fine-tunes into equal weights.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks, scale = Tasks(tensors, base, context), number(params, "scale")
    limit = _variance_limit(tasks, number(params, "density"))
    weights = _shares(tasks.power_sums(2) if limit == 0 else _selected_sums(tasks, limit), 1.0)
    if scale == 0:
        return tasks.base()
    masks = params["mask_scope"] == "all" and limit > 0

    def erase(deltas: list[Tensor], start: int) -> Tensor:  # noqa: ARG001  the same at every place
        if masks:
            kept = _variance(deltas) >= limit
            deltas = [delta.mul_(kept) for delta in deltas]
        positive = total(deltas) >= 0
        merged, weight = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
        for delta, share in zip(deltas, weights, strict=True):
            agrees = torch.where(positive, delta > 0, delta < 0)
            merged.add_(delta.mul_(agrees), alpha=share)
            weight.add_(agrees, alpha=share)
        return merged.div_(weight.masked_fill_(weight == 0, 1.0)).mul_(scale)

    return tasks.merge(erase)


def _shares(sums: Sequence[float], power: float) -> list[float]:
    """Return weights of sum 1 in proportion to a power of the sums; a sum of 0 has weight 0."""
    largest = max(sums)
    raised = [(one / largest) ** power if one > 0 else 0.0 for one in sums]
    whole = math.fsum(raised)
    return [one / whole for one in raised] if whole > 0 else raised


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Return the population variance over the sources of each entry, float32 rounded from float64."""
    exact = [delta.double() for delta in deltas]
    mean = total(exact).div_(len(exact))  # of equal float32 numbers exactly that number
    return total([one.sub_(mean).square_() for one in exact]).div_(len(exact)).float()


def _variance_limit(tasks: Tasks, density: float) -> float:
    """Return the variance from which an entry is selected; 0 selects everything."""
    if density >= 1 or tasks.count == 1:
        return 0.0
    varied = int(tasks.kept("entries in which task vectors differ", lambda: (_num_varied(tasks),))[0])
    if varied == 0:
        return 0.0
    rank = kept_count(varied, density)
    return ranked(lambda: ([_variance(deltas)] for deltas in tasks.deltas()), tasks.numel, [[rank]])[0][0]


def _num_varied(tasks: Tasks) -> Tensor:
    return torch.tensor(sum(int((_variance(deltas) > 0).sum()) for deltas in tasks.deltas()))


def _selected_sums(tasks: Tasks, limit: float) -> list[float]:
    """Return Σ τ_i² over the selected entries in float64."""
    sums = [0.0] * tasks.count
    for deltas in tasks.deltas():
        kept = _variance(deltas) >= limit
        for place, delta in enumerate(deltas):
            sums[place] += ordered_sum(delta.mul_(kept).double().square_())
    return sums
