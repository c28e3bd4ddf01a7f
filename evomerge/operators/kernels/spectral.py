"""Merges in the singular vectors of task vectors: TSV-M, Iso-C and Iso-CTS, STAR, KnOTS.

What a tensor is that these decompose, how, and what becomes of the others, says `matrices`.

Legend: θ_0 base, τ_i task vector (m, n), w_i weight, λ scale, N sources, U_i Σ_i V_iᵀ thin SVD of τ_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context, Tensors
from evomerge.operators.kernels.inputs import normalized, number, numbers
from evomerge.operators.kernels.masks import drop_entries, mask_key
from evomerge.operators.kernels.matrices import Svd, Tasks, factored_svd, polar, rounded, svd
from evomerge.operators.kernels.selection import kept_count, kth_largest_magnitude
from evomerge.operators.kernels.votes import Votes
from evomerge.operators.metadata import Resolved


def tsv_m(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ Û_⊥ diag(w_i Σ_i) V̂_⊥ᵀ, the leading directions of all sources made orthogonal to each other.

    Gargiulo et al. 2025, arXiv:2412.00081: of each τ_i the k = ⌊ρ·min(m, n)/N⌋ leading directions (at least one) are
    stacked, and both stacks are replaced by their polar factors. Deviation: the polar factors are rank-revealing, so
    that equal sources give the truncated τ and orthogonal low-rank ones their sum; the plain ones gain arbitrary
    directions there.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    return _tsv(Tasks(tensors, base, params, context), params, None)


def tsv_outlier(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return the TSV-M merge of c_i τ_i with c_i = N ω_i / Σ ω and ω_i the mass of τ_i's outliers.

    After R-TSVM (arXiv:2502.06876), of which only the abstract could be read: neither this weight nor the rule could
    be verified, and the rank that adapts to a layer's sparsity is left out. Outliers are the entries with
    |τ| > mean + κ·(standard deviation) of |τ_i|; where no source has any, c_i = 1.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    return _tsv(Tasks(tensors, base, params, context), params, number(params, "kappa"))


def _tsv(tasks: Tasks, params: Mapping[str, Resolved], kappa: float | None) -> Tensor:
    scale = number(params, "scale")
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    rank = max(1, int(number(params, "rank") * min(tasks.shape) / len(tasks)))
    left, values, owners, right = tasks.context.kept(
        tasks.of_all(f"tsv {rank}"), lambda: _without_interference(tasks, rank)
    )
    factors = torch.tensor(tasks.weights, dtype=torch.float32, device=tasks.device) * scale
    if kappa is not None:
        (outliers,) = tasks.context.kept(tasks.of_all(f"outliers {kappa}"), lambda: (_outlier_factors(tasks, kappa),))
        factors = factors * outliers
    return tasks.result((left * (values * factors[owners])) @ right.T)


def _without_interference(tasks: Tasks, rank: int) -> Tensors:
    """Return Û_⊥, the concatenated values, the source of each of them, and V̂_⊥."""
    parts = [Svd(*(part[..., :rank] for part in tasks.svd(index))) for index in range(len(tasks))]
    left = polar(torch.cat([part.u for part in parts], 1).double())
    right = polar(torch.cat([part.v for part in parts], 1).double())
    counts = torch.tensor([len(part.values) for part in parts], device=tasks.device)
    owners = torch.repeat_interleave(torch.arange(len(parts), device=tasks.device), counts)
    return left.float(), torch.cat([part.values for part in parts]), owners, right.float()


def _outlier_factors(tasks: Tasks, kappa: float) -> Tensor:
    masses = torch.zeros(len(tasks), dtype=torch.float64, device=tasks.device)
    for index in range(len(tasks)):
        size = tasks.dense(index).abs().double()
        limit = size.mean() + kappa * size.std(correction=0)
        masses[index] = size[size > limit].sum()
    total = masses.sum()
    return (masses * (len(tasks) / total) if total > 0 else torch.ones_like(masses)).float()


def iso_c(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ σ̄ U Vᵀ with U Σ Vᵀ = Σ_i w_i τ_i and σ̄ the mean of its singular values (Iso-C).

    Marczak et al. 2025, arXiv:2502.04959. Deviation: null directions count neither in the mean nor in the result, where
    the plain SVD spreads energy over arbitrary ones; the nuclear norm is kept in both cases. Kept between candidates
    while all weights are equal.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    return _isotropic(Tasks(tensors, base, params, context), params, 1.0)


def iso_cts(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ σ̄ U Vᵀ over common directions, those of Σ w_i τ_i, and directions of single sources (Iso-CTS).

    Marczak et al. 2025, arXiv:2502.04959. Of r slots about a share s is for the leading common directions U_c; the
    others go in equal parts to the leading directions of each w_i τ_i - U_c U_cᵀ w_i τ_i. Both stacks are made
    orthogonal by their polar factors, and σ̄ is the mean of the collected singular values. Deviations: r is
    min(m, n, Σ rank τ_i), which differs from min(m, n) for low-rank sources only, and null directions are left out.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    return _isotropic(Tasks(tensors, base, params, context), params, number(params, "common"))


def _isotropic(tasks: Tasks, params: Mapping[str, Resolved], common: float) -> Tensor:
    scale = number(params, "scale")
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    first = tasks.weights[0]
    if any(weight != first for weight in tasks.weights):
        return tasks.result(_flat_spectrum(tasks, tasks.weights, common)[0] * scale)
    ones = [1.0] * len(tasks)
    keep = tasks.context.filed if common == 1 else tasks.context.kept
    (flat,) = keep(tasks.of_all(f"isotropic {common}"), lambda: _flat_spectrum(tasks, ones, common))
    return tasks.result(flat * (scale * first))


def _flat_spectrum(tasks: Tasks, weights: Sequence[float], common: float) -> Tensors:
    """Return σ̄ U Vᵀ as one float32 matrix."""
    whole = _svd_of_sum(tasks, weights)
    if common == 1:
        found = whole
    else:
        own = tasks.matrices()
        slots = min(*tasks.shape, sum(matrix.rank() for matrix in own))
        each = min(round((slots - int(slots * common)) / len(tasks)), slots // len(tasks))
        shared = slots - each * len(tasks)
        parts = [Svd(*(part[..., :shared] for part in whole))]
        for matrix, weight in zip(own, weights, strict=True):
            parts.append(_outside(matrix.dense() * weight, parts[0].u, matrix.noise * abs(weight), each))
        found = Svd(
            polar(torch.cat([part.u for part in parts], 1)),
            torch.cat([part.values for part in parts]),
            polar(torch.cat([part.v for part in parts], 1)),
        )
    if len(found.values) == 0:
        return (torch.zeros(tasks.shape, device=tasks.device),)
    return ((found.values.mean() * (found.u @ found.v.T)).float(),)


def _outside(matrix: Tensor, known: Tensor, noise: float, count: int) -> Svd:
    """Return the leading directions of what a matrix has outside the span of `known`, if it has any."""
    # What is left of a matrix that lies within is rounding: it is measured by the matrix, not by itself.
    limit = max(noise, float(matrix.norm()) * 1e-6)
    found = svd(matrix - known @ (known.T @ matrix), limit)
    return Svd(*(part[..., :count] for part in found))


def _svd_of_sum(tasks: Tasks, weights: Sequence[float]) -> Svd:
    """Return the SVD of Σ w_i τ_i, from the factors where all are known and narrow enough."""
    matrices = tasks.matrices()
    factors = [(matrix.factors, weight) for matrix, weight in zip(matrices, weights, strict=True) if matrix.factors]
    if len(factors) == len(matrices) and sum(matrix.right.shape[0] for matrix in matrices) < min(tasks.shape):
        left = torch.cat([pair[0] * weight for pair, weight in factors if pair is not None], 1)
        return factored_svd(left, torch.cat([matrix.right for matrix in matrices]))
    total = torch.zeros(tasks.shape, dtype=torch.float64, device=tasks.device)
    noise = 0.0
    for matrix, weight in zip(matrices, weights, strict=True):
        total += matrix.dense() * weight
        noise += matrix.noise * abs(weight)
    return svd(total, noise)


def star(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ mean(w_i τ̂_i), where τ̂_i has the leading directions of τ_i at the nuclear norm of all.

    Lee et al. 2025, STAR, arXiv:2502.10339: the directions up to the first at which the cumulative singular values
    reach η of their sum, multiplied by that sum over what was kept.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, params, context)
    scale, share = number(params, "scale"), number(params, "eta")
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    left, right = [], []
    for index, weight in enumerate(tasks.weights):
        u, values, v = tasks.svd(index)
        if len(values) == 0:
            continue
        sums = values.double().cumsum(0)
        rank = min(len(values), 1 + int((sums < share * sums[-1]).sum()))
        factor = scale * weight / len(tasks) * float(sums[-1] / sums[rank - 1])
        left.append(u[:, :rank] * (values[:rank] * factor))
        right.append(v[:, :rank])
    if not left:
        return tasks.others(0.0)
    return tasks.result(torch.cat(left, 1) @ torch.cat(right, 1).T)


def knots(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ U·merge(U ᵀτ_1, …), the sources merged in the left singular vectors U of [τ_1 | … | τ_N].

    Stoica et al. 2025, KnOTS, arXiv:2410.19735. Inner merge: `ties` (each Uᵀτ_i keeps its largest entries, a sign is
    elected entry by entry) or `linear`, which is task arithmetic, exactly, and is computed as such. Deviations:
    directions are cut off relative to the largest singular value and not at an absolute one, and entries as large as
    the last one kept stay too, as in `ties`.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, params, context)
    scale = number(params, "scale")
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    if params["inner"] == "linear":
        weights = normalized(tasks.weights) if params["normalize"] else tasks.weights
        return tasks.linear([scale * weight for weight in weights])
    densities = numbers(params, "density")

    def trimmed(index: int, own: Tensor) -> Tensor:
        limit = kth_largest_magnitude(own, kept_count(own.numel(), densities[tasks.indices[index]]))
        return own.masked_fill(own.abs() < limit, 0.0)

    return _merged_aligned(tasks, params, trimmed, elects=True)


def knots_dare(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ U·merge(factor_i b_i ⊙ Uᵀτ_i), KnOTS with DARE: entries of the aligned parts dropped at random.

    Stoica et al. 2025, KnOTS, arXiv:2410.19735, with the drop of Yu et al. 2024, DARE, arXiv:2311.03099:
    b_i ~ Bernoulli(ρ_i) over the entries of Uᵀτ_i, row by row, and the factor is 1/ρ_i (`inv_keep`),
    ‖Uᵀτ_i‖₁/‖b_i ⊙ Uᵀτ_i‖₁ (`l1`) or 1 (`none`). What is left is summed (`inner: linear`), or a sign is elected
    (`ties`). A direction's sign is arbitrary and changes nothing. Tensors that are no matrices lose no entries.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, params, context)
    if number(params, "scale") == 0 or not tasks.are_matrices():
        return tasks.others(number(params, "scale"))
    densities, rescale = numbers(params, "density"), params["rescale"]

    def dropped(index: int, own: Tensor) -> Tensor:
        density = densities[tasks.indices[index]]
        if density >= 1:
            return own.clone()
        key = mask_key(context.seed, context.name, tasks.ids[index])
        left = drop_entries(own.flatten().clone(), key, density).view(own.shape)
        if rescale == "inv_keep":
            return left.div_(density)
        size = float(left.abs().sum(dtype=torch.float64)) if rescale == "l1" else 0.0
        return left.mul_(float(own.abs().sum(dtype=torch.float64)) / size) if size > 0 else left

    return _merged_aligned(tasks, params, dropped, elects=params["inner"] == "ties")


def _merged_aligned(
    tasks: Tasks, params: Mapping[str, Resolved], thin: Callable[[int, Tensor], Tensor], *, elects: bool
) -> Tensor:
    """Return θ_0 + λ U·merge(thin(Uᵀτ_i)); `thin` gives new tensors."""
    shared, *aligned = tasks.context.filed(tasks.of_all("knots"), lambda: _aligned(tasks))
    if shared.shape[1] == 0:
        return tasks.others(0.0)
    scale, mean = number(params, "scale"), bool(params["normalize"])
    if elects:
        votes = Votes(mean=mean)
        for index, own in enumerate(aligned):
            votes.add(thin(index, own), tasks.weights[index])
        merged = votes.merge(str(params["zero_sign"]))
    else:
        weights = normalized(tasks.weights) if mean else tasks.weights
        merged = torch.zeros_like(aligned[0])
        for index, own in enumerate(aligned):
            merged.add_(thin(index, own), alpha=weights[index])
    return tasks.result(shared @ merged * scale)


def _aligned(tasks: Tasks) -> Tensors:
    """Return U of [τ_1 | … | τ_N] and each Uᵀτ_i in float32; from QR cores where factors are known."""
    matrices = tasks.matrices()
    factors = [matrix.factors for matrix in matrices if matrix.factors is not None]
    if len(factors) == len(matrices) and sum(matrix.right.shape[0] for matrix in matrices) < tasks.shape[0]:
        near, upper = torch.linalg.qr(torch.cat([left for left, _ in factors], 1))
        # Orthonormal rows of each τ_i do not change U: what is left is as small as the ranks' sum.
        widths = [left.shape[1] for left, _ in factors]
        cores = [torch.linalg.qr(right.T).R.T for _, right in factors]
        parts = [block @ core for block, core in zip(upper.split(widths, 1), cores, strict=True)]
        shared = near @ _left_directions(torch.cat(parts, 1))
    else:
        noise = sum(matrix.noise**2 for matrix in matrices) ** 0.5
        shared = svd(torch.cat([matrix.dense() for matrix in matrices], 1), noise).u
    return rounded((shared, *(matrix.left_times(shared.T) for matrix in matrices)))


def _left_directions(core: Tensor) -> Tensor:
    """Return the left singular vectors of a small matrix, without the null directions."""
    return factored_svd(core, torch.eye(core.shape[1], dtype=core.dtype, device=core.device)).u
