"""Least interference between task vectors: WUDI in closed form, SWUDI as a flow, OptMerge.

All minimise Σ_i ‖(M - w_i T_i) P_iᵀ‖² / q_i over M, starting from M_0 = c Σ w_i τ_i. With G = Σ P_iᵀP_i/q_i = V Λ Vᵀ
and B_i = T_i P_iᵀP_i/q_i the gradient flow of half of that reaches, at time t,

    M(t) = Σ w_i [c τ_i + (B_i V/Λ - c τ_i V) f Vᵀ],  f = 1 - exp(-Λ t),

and the minimiser nearest to M_0 as t → ∞. It is linear in the weights, so all that costs is kept between candidates.
The arithmetic is float64, in the space that the rows of all τ_i span where that is smaller than the whole; eigenvalues
below 1e-10 of the largest count as 0, and M stays as it started there.

Legend: τ_i task vector as a matrix (outputs m, inputs n), q_i = ‖τ_i‖², w_i weight, λ scale; T_i target and P_i
projector, both τ_i in WUDI; c = 1, 1/N or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context, Tensors
from evomerge.operators.kernels.inputs import number
from evomerge.operators.kernels.matrices import TaskMatrix, Tasks, rounded, svd
from evomerge.operators.metadata import Resolved

_SMALLEST_EIGENVALUE = 1e-10
_SMALLEST_PIVOT = 1e-8
"""Pivots are not below the least eigenvalue, and seldom far above it: this leaves room for 100."""


def wudi(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λM, M the minimiser of Σ ‖(M - w_i τ_i) τ_iᵀ‖²/‖τ_i‖² that is nearest to Σ w_i τ_i (WUDI).

    Cheng et al. 2025, arXiv:2503.08099. Deviation: the exact minimum in place of 300 steps of Adam, whose result
    depends on the size of the elements. A source with τ_i = 0 is left out.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, params, context)
    scale = number(params, "scale")
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    return tasks.weighted(context.filed(tasks.of_all("wudi"), lambda: _minima(tasks)), scale)


def _minima(tasks: Tasks) -> Tensors:
    """Return what each source with weight 1 adds to the minimum, float32 (m, n)."""
    basis, drifts = _drifts(_system(tasks, None, centre=False), 1.0)
    dense = (drift.float() if basis is None else drift.float() @ basis.T.float() for drift in drifts)
    return tuple(drift.add_(tasks.dense(index)) for index, drift in enumerate(dense))


def swudi(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + λ M(t), the flow of the loss of `wudi` from its start to the time t.

    The spectral form of WUDI (SWUDI, in the released code of arXiv:2503.08099): t = 0 gives the start, t → ∞ the closed
    form, and a t between them does what a number of gradient steps does, smoothly. The loss is divided by norms, so t
    has no unit. Deviation: no share of eigenvalues is cut off beside the null space.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    return _flowed(Tasks(tensors, base, params, context), params, None)


def optmerge(
    tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
) -> Tensor:
    """Return θ_0 + λ M(t) as in `swudi` with targets and projectors of the k = ⌊ρ·min(m, n)/N⌋ leading directions.

    OptMerge (Wei et al. 2025, arXiv:2505.19892). P_i = Σ_i V_iᵀ truncated; T_i is mean(τ) + [τ_i - mean(τ)]_k where
    `centre`, as for models tuned as a whole, or [τ_i]_k, as for adapters. Deviations: the flow to a time in place of
    300 steps of Adam or SGD, and weights, which multiply targets and start. Truncated projectors leave directions that
    are nearly dependent, in which the exact minimum is far away: the time is what keeps M near.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
    """
    tasks = Tasks(tensors, base, params, context)
    rank = max(1, int(number(params, "rank") * min(tasks.shape) / len(tasks))) if tasks.are_matrices() else 0
    return _flowed(tasks, params, rank, centre=bool(params["centre"]))


def _flowed(tasks: Tasks, params: Mapping[str, Resolved], rank: int | None, *, centre: bool = False) -> Tensor:
    """Return θ_0 + λ M(t)."""
    scale, start = number(params, "scale"), str(params["start"])
    if scale == 0 or not tasks.are_matrices():
        return tasks.others(scale)
    share = _start(start, len(tasks))

    def make() -> Tensors:
        values, basis, drifts = _eigen_drifts(_system(tasks, rank, centre=centre), share)
        return rounded((values, basis, *drifts))

    keep = tasks.context.filed if rank is None else tasks.context.kept
    values, basis, *drifts = keep(tasks.of_all(f"flow {start} {rank} {centre}"), make)
    total = torch.zeros_like(drifts[0])
    for weight, drift in zip(tasks.weights, drifts, strict=True):
        total.add_(drift, alpha=weight)
    task = (total * -torch.expm1(values * -number(params, "time"))) @ basis.T
    for index, weight in enumerate(tasks.weights if share else ()):
        task.add_(tasks.dense(index), alpha=share * weight)
    return tasks.result(task * scale)


def _start(start: str, count: int) -> float:
    """Return c."""
    return {"sum": 1.0, "mean": 1.0 / count, "zero": 0.0}[start]


class _System(NamedTuple):
    """The normal equations M G = Σ w_i B_i in p dimensions of the inputs."""

    rows: Tensor | None
    """Orthonormal columns (n, p) that say which dimensions; None: all."""
    inner: list[Tensor]
    """τ_i (m, p)."""
    products: list[tuple[Tensor, Tensor]]
    """B_i as the product of two, (m, k) and (k, p)."""
    gram: Tensor
    smallest: float
    """Eigenvalues up to this are 0."""


def _system(tasks: Tasks, rank: int | None, *, centre: bool) -> _System:
    matrices = tasks.matrices()
    rows = _row_space([matrix.right for matrix in matrices])
    inner = [matrix.dense() if rows is None else matrix.times(rows) for matrix in matrices]
    squares = [float(matrix.square().sum()) for matrix in inner]
    targets = projectors = inner
    if rank is not None:
        targets, projectors = _denoised(inner, matrices, rank, centre=centre)
        found = _row_space(projectors)
        if found is not None:
            rows = found if rows is None else rows @ found
            inner, targets, projectors = ([part @ found for part in parts] for parts in (inner, targets, projectors))
    width = inner[0].shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=tasks.device)
    products, smallest = [], 0.0
    for target, projector, square, matrix in zip(targets, projectors, squares, matrices, strict=True):
        factor = 1 / square if square > 0 else 0.0
        gram.addmm_(projector.T, projector, alpha=factor)
        products.append((target @ projector.T * factor, projector))
        smallest = max(smallest, matrix.noise**2 * factor)
    return _System(rows, inner, products, gram, smallest)


def _drifts(system: _System, share: float) -> tuple[Tensor | None, list[Tensor]]:
    """Return a basis (n, r) of inputs, None for all of them, and B_i G⁺ - c τ_i G G⁺ (m, r) in it.

    By Cholesky where G has no null space, a small part of the cost of its eigenvectors.
    """
    factor, failed = torch.linalg.cholesky_ex(system.gram)
    pivots = factor.diagonal().square()
    if (
        len(pivots)
        and int(failed) == 0
        and float(pivots.min())
        > max(_SMALLEST_PIVOT * float(pivots.max()), _SMALLEST_PIVOT / _SMALLEST_EIGENVALUE * system.smallest)
    ):
        return system.rows, [
            torch.cholesky_solve((left @ right).T, factor).T - share * own
            for own, (left, right) in zip(system.inner, system.products, strict=True)
        ]
    _, basis, drifts = _eigen_drifts(system, share)
    return basis, drifts


def _eigen_drifts(system: _System, share: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return Λ, the directions V (n, r) and the drifts B_i V/Λ - c τ_i V (m, r), without the null space."""
    values, vectors = torch.linalg.eigh(system.gram)
    if len(values):
        keep = values > max(float(values[-1]) * _SMALLEST_EIGENVALUE, system.smallest)
        values, vectors = values[keep], vectors[:, keep]
    drifts = [
        left @ (right @ vectors) / values - share * (own @ vectors)
        for own, (left, right) in zip(system.inner, system.products, strict=True)
    ]
    return values, vectors if system.rows is None else system.rows @ vectors, drifts


def _row_space(parts: Sequence[Tensor]) -> Tensor | None:
    """Return orthonormal columns (n, p) that span the rows of all matrices (any, n); None: p would not be below n."""
    if sum(part.shape[0] for part in parts) >= parts[0].shape[1]:
        return None
    basis: Tensor = torch.linalg.qr(torch.cat(list(parts)).T).Q
    return basis


def _denoised(
    inner: Sequence[Tensor], matrices: Sequence[TaskMatrix], rank: int, *, centre: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return OptMerge's targets and projectors."""
    mean = torch.stack(list(inner)).mean(0) if centre else torch.zeros_like(inner[0])
    targets, projectors = [], []
    for own, matrix in zip(inner, matrices, strict=True):
        u, values, v = svd(own - mean, matrix.noise)
        targets.append(mean + (u[:, :rank] * values[:rank]) @ v[:, :rank].T)
        _, values, v = svd(own, matrix.noise) if centre else (u, values, v)
        projectors.append(values[:rank, None] * v[:, :rank].T)
    return targets, projectors
