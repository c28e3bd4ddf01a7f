"""Task vectors that keep out of each other's subspaces: OPCM one after the other, DOGE by a shared shift.

Legend: θ_0 base, τ_i task vector as a matrix (m, n), w_i weight, N sources, U Σ Vᵀ thin SVD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.operators.kernels.context import Context, Model, Tensors
from evomerge.operators.kernels.inputs import global_threshold, measured_over, number, numbers, spans
from evomerge.operators.kernels.matrices import Svd, Tasks, svd
from evomerge.operators.kernels.selection import kept_count, kth_largest_magnitude
from evomerge.operators.kernels.tasks import ordered_sum, total
from evomerge.operators.metadata import Resolved

_NOTHING_LEFT = 1e-12
"""A sum shorter than this share of its parts is their rounding."""


def opcm(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + A at the mean length of the w_i τ_i, where A takes from each next source what is new to it (OPCM).

    Tang et al. 2025, arXiv:2501.09522. Sources come by increasing `order` (equal ones by content). From A = w_1 τ_1 on,
    each next w τ is added without what P = Uᵀ(w τ)V has on its diagonal and in its leading r × r block, where
    U Σ Vᵀ = A and r is the first index, from 0, at which the cumulative singular values exceed the share α (none: all).
    A thin SVD gives what the full one does, and of the paper's factors λ_t all but the last cancel. Other tensors are
    sums, at the mean length too. Lengths are of the whole model with `scope: global` (the paper), which takes one
    more merge of all of it, or of the tensor. Deviation: the null directions of A count as new.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
        NotBuiltError: for scope "global" from a caller that makes no global pass.
    """
    tasks = Tasks(tensors, base, params, context)
    if len(tasks) == 0:
        return tasks.others(0.0)
    share = number(params, "share")
    merged, squares = _merged(tasks, share)
    if params["scope"] == "global":
        measure = measured_over("global", tensors, base, context)
        what = tasks.of_all(f"lengths {share} {tasks.weights}")
        (squares,) = measure(what, lambda model: (_squares_of_model(model, params, share),))
    length, *lengths = squares.sqrt().tolist()
    mean = sum(abs(weight) * one for weight, one in zip(tasks.weights, lengths, strict=True)) / len(tasks)
    factor = mean / length if length > _NOTHING_LEFT * mean else 0.0
    if merged is None:
        return tasks.linear([factor * weight for weight in tasks.weights])
    return tasks.result(merged * factor)


def _squares_of_model(model: Model, params: Mapping[str, Resolved], share: float) -> Tensor:
    """Return ‖A‖² and each ‖τ_i‖² of a whole model."""
    parts = (_merged(Tasks(tensors, base, params, context), share)[1] for tensors, base, context in model())
    return torch.stack(list(parts)).sum(0)


def _merged(tasks: Tasks, share: float) -> tuple[Tensor | None, Tensor]:
    """Return A, float64 of shape (m, n), and ‖A‖² and each ‖τ_i‖² as a float64 vector.

    A of a tensor that is no matrix is the sum of the w_i τ_i, which is not made: None.
    """
    if not tasks.are_matrices():
        return None, _squares_of_sum(tasks)
    merged, noise = torch.zeros(tasks.shape, dtype=torch.float64, device=tasks.device), 0.0
    squares = [0.0]
    for index, weight in enumerate(tasks.weights):
        matrix = tasks.matrix(index)
        own = matrix.dense()
        squares.append(float(own.square().sum()))
        own = own * weight
        if index > 0:
            known = Svd(*(part.double() for part in tasks.svd(0))) if index == 1 else svd(merged, noise)
            own = own - _known_part(own, known, share)
        merged += own
        noise += abs(weight) * matrix.noise
    squares[0] = float(merged.square().sum())
    return merged, torch.tensor(squares, dtype=torch.float64)


def _squares_of_sum(tasks: Tasks) -> Tensor:
    """Return ‖Σ w_i τ_i‖² and each ‖τ_i‖², span by span."""
    vectors = [tasks.vector(index) for index in range(len(tasks))]
    squares = torch.zeros(1 + len(tasks), dtype=torch.float64)
    for start, stop in spans(vectors[0].numel(), tasks.device):
        parts = [vector[start:stop].double() for vector in vectors]
        both = (total(parts, tasks.weights), *parts)
        squares += torch.tensor([ordered_sum(part.square()) for part in both], dtype=torch.float64)
    return squares


def _known_part(own: Tensor, known: Svd, share: float) -> Tensor:
    """Return U (P - P̃) Vᵀ: the diagonal of P = Uᵀ own V, and its leading block."""
    projected = known.u.T @ own @ known.v
    sums = known.values.cumsum(0)
    block = int((sums <= share * sums[-1]).sum()) if len(sums) else 0
    taken = torch.diag(projected.diagonal())
    taken[:block, :block] = projected[:block, :block]
    return known.u @ taken @ known.v.T


def doge(tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context) -> Tensor:
    """Return θ_0 + Σ λ_i m_i ⊙ (τ_i + δ): trimmed task vectors of equal length, with a shift that they share (DOGE).

    Wei et al. 2025, arXiv:2501.01230. λ_i = w_i·mean‖τ‖/‖τ_i‖; δ lowers Σ_j Σ_rows (Σ_columns τ_j ⊙ (τ_j - Σ λ_i
    (τ_i + δ)))² and stays orthogonal to the ⌊min(m, n)/d⌋ leading left directions that the sources have in common; the
    mask m_i keeps the largest entries of τ_i. Tensors that are no matrices are the base's, unless `others` says else.

    Deviations: w_i, which is relative to the mean length, takes the place of an absolute η (the paper's 0.07);
    `steps` steps of plain gradient descent at the inverse of the largest curvature take the place of 400 of Adam, so
    that the result scales with the task vectors and δ is orthogonal indeed; a source with τ_i = 0 is left out.

    Raises:
        SourceError: for a missing base, or tensors that do not fit each other.
        NotBuiltError: for a global mask where the caller makes no pass over the model.
    """
    tasks = Tasks(tensors, base, params, context)
    if not tasks.are_matrices():
        return tasks.others(1.0)
    divisor, steps = number(params, "subspace"), int(number(params, "steps"))
    shifts = context.kept(tasks.of_all(f"doge {divisor} {steps}"), lambda: _shifts(tasks, divisor, steps))
    own = [tasks.dense(index) for index in range(len(tasks))]
    lengths = [float(matrix.double().norm()) for matrix in own]
    mean = sum(lengths) / len(lengths)
    factors = [w * mean / length if length > 0 else 0.0 for w, length in zip(tasks.weights, lengths, strict=True)]
    total = sum(factors)
    result = torch.zeros_like(own[0])
    if total == 0:
        return tasks.result(result)
    shift = shifts[0].clone()
    for weight, part in zip(tasks.weights, shifts[1:], strict=True):
        shift.sub_(part, alpha=weight)
    shift.div_(total)
    for index, (matrix, factor) in enumerate(zip(own, factors, strict=True)):
        size = matrix.abs()
        moved = matrix.add_(shift).masked_fill_(size < _limit(tasks, index, size, params), 0.0)
        result.add_(moved, alpha=factor)
    return tasks.result(result)


def _limit(tasks: Tasks, index: int, size: Tensor, params: Mapping[str, Resolved]) -> float:
    """Return the magnitude from which an entry of a task vector is kept."""
    source = tasks.indices[index]
    density = numbers(params, "density")[source]
    if density >= 1:
        return 0.0
    if params["scope"] == "tensor":
        return kth_largest_magnitude(size, kept_count(size.numel(), density))
    return global_threshold(tasks.context, source, density)


def _shifts(tasks: Tasks, divisor: float, steps: int) -> Tensors:
    """Return μ_0 and one μ_i a source with (Σ λ_i) δ = μ_0 - Σ w_i μ_i: the descent is linear in its targets."""
    own = torch.stack([tasks.dense(index) for index in range(len(tasks))])
    lengths = own.flatten(1).double().norm(dim=1)
    mean = float(lengths.mean())
    if mean == 0:
        return (torch.zeros_like(own[0]),) * (len(tasks) + 1)
    own = own.transpose(0, 1) * (1 / mean)  # (m, N, n), of size 1, so that fourth powers do not underflow
    units = own * torch.where(lengths > 0, mean / lengths, lengths)[:, None].float()
    grams = own @ own.mT
    goals = torch.cat([grams.diagonal(dim1=1, dim2=2)[..., None], own @ units.mT], 2)
    curvature = float(torch.linalg.eigvalsh(grams).max())
    found = _descended(own, goals, _common_left(tasks, divisor), steps, 1 / curvature)
    return tuple(part.contiguous() for part in (found * mean).unbind(2))


def _descended(own: Tensor, goals: Tensor, known: Tensor, steps: int, rate: float) -> Tensor:
    """Return μ of each goal after steps towards Σ_columns τ_j ⊙ μ = goal_j, outside the span of `known`.

    Args:
        own: (m, N, n), the task vectors row by row.
        goals: (m, N, G).
        known: (m, k), orthonormal columns.
        steps: how many.
        rate: of each.

    Returns:
        (m, n, G).
    """
    shift = torch.zeros(own.shape[0], own.shape[2], goals.shape[2], device=own.device)
    for _ in range(steps):
        step = own.mT @ (goals - own @ shift)
        flat = step.flatten(1)
        flat.sub_(known @ (known.T @ flat))
        shift.add_(step, alpha=rate)
    return shift


def _common_left(tasks: Tasks, divisor: float) -> Tensor:
    """Return the leading left directions of the stacked ⌊min(m, n)/N⌋ leading ones of each source, float32."""
    smaller = min(tasks.shape)
    stacked = torch.cat([tasks.svd(index).u[:, : smaller // len(tasks)] for index in range(len(tasks))], 1)
    if stacked.shape[1] == 0:
        return stacked
    return svd(stacked.double()).u[:, : int(smaller / divisor)].float()
