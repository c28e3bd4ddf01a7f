"""Task vectors as matrices, for the methods that decompose them.

A matrix is a tensor of two dimensions that is no embedding or head; it is read as (outputs, inputs). What becomes of
all other tensors is the parameter `others`: the mean of the w_i τ_i times λ, or nothing (the base stays).

Decompositions are made from the float64 Gram matrix of the smaller side. That costs less than an SVD in float32, and
is more exact for every singular value above 1e-8 of the largest. Those below 1e-6 of it, or below what rounding to
float32 can make of a task vector, count as 0. Where the factors of a LoRA adapter are known, the QR of both and the SVD
of their small core take the place of this, and nothing dense is made.

Legend: θ_0 base, τ_i task vector as a matrix (m, n), w_i weight, λ scale, U Σ Vᵀ thin SVD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.operators.kernels.combine import summed
from evomerge.operators.kernels.context import Context, Tensors
from evomerge.operators.kernels.inputs import (
    Flat,
    TaskVector,
    active,
    flatten,
    flatten_base,
    numbers,
    result_like,
)
from evomerge.operators.kernels.thinning import Whole
from evomerge.operators.metadata import Resolved

SMALLEST_VALUE = 1e-6
"""Singular values below this share of the largest are 0."""
_SMALLEST_COMMON = 1e-5
"""Singular values of stacked directions (kept in float32) below this share of the largest are 0."""
_ROUNDING = 2.0**-24


class Svd(NamedTuple):
    """A thin SVD without null directions: u (m, r), values (r,) descending, v (n, r)."""

    u: Tensor
    values: Tensor
    v: Tensor


class TaskMatrix:
    """The task vector of one source as a matrix (outputs, inputs) in float64; dense, or left right."""

    def __init__(self, dense: Tensor | None, factors: tuple[Tensor, Tensor] | None, noise: float) -> None:
        """Hold one of both forms; `noise` is the largest singular value that rounding can make."""
        self._dense, self.factors, self.noise = dense, factors, noise

    @property
    def right(self) -> Tensor:
        """The matrix, or its right factor: rows that span those of the matrix."""
        return self.dense() if self.factors is None else self.factors[1]

    def dense(self) -> Tensor:
        """Return the matrix, float64 of shape (m, n)."""
        if self.factors is not None:
            return self.factors[0] @ self.factors[1]
        if self._dense is None:
            raise ValueError("a task vector is given dense or by factors")
        return self._dense

    def times(self, matrix: Tensor) -> Tensor:
        """Return the product with a matrix of n rows, in the cheapest order."""
        return self.dense() @ matrix if self.factors is None else self.factors[0] @ (self.factors[1] @ matrix)

    def left_times(self, matrix: Tensor) -> Tensor:
        """Return the product of a matrix of m columns with this one, in the cheapest order."""
        return matrix @ self.dense() if self.factors is None else (matrix @ self.factors[0]) @ self.factors[1]

    def svd(self) -> Svd:
        """Return the thin SVD, float64."""
        return svd(self.dense(), self.noise) if self.factors is None else factored_svd(*self.factors)

    def rank(self) -> int:
        """Return the numerical rank, that of `svd`."""
        if self.factors is not None:
            return len(self.svd().values)
        return _rank(torch.linalg.eigvalsh(_gram(self.dense())).flip(0).clamp_(min=0.0).sqrt_(), self.noise)


class Tasks:
    """What such a method reads: weights and task vectors of the sources that take part, in a fixed order."""

    def __init__(
        self, tensors: Sequence[Tensor], base: Tensor | None, params: Mapping[str, Resolved], context: Context
    ) -> None:
        """Check the inputs; nothing is computed yet.

        Raises:
            SourceError: for a missing base, or tensors that do not fit each other.
        """
        self._flat: list[Flat] = flatten(tensors, context)
        self._origin = flatten_base(base, tensors[0], context)
        self._like, self._others, self.context = tensors[0], params.get("others", "mean"), context
        weights = numbers(params, "weight")
        orders = (numbers(params, "order"),) if "order" in params else ()
        self.indices = active(context, weights)
        if orders:
            self.indices.sort(key=lambda index: orders[0][index])
        self.weights = [weights[index] for index in self.indices]
        self.ids = [context.source_ids[index] for index in self.indices]

    def __len__(self) -> int:
        """Return the number of sources that take part."""
        return len(self.indices)

    def are_matrices(self) -> bool:
        """Tell whether there is anything to decompose."""
        return self._like.dim() == 2 and self._like.numel() > 0 and not self.context.is_vocabulary and len(self) > 0

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        rows, columns = self._like.shape
        return (columns, rows) if self.context.inputs_first else (rows, columns)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._like.device

    def matrix(self, index: int) -> TaskMatrix:
        """Return the task vector of the index-th of the sources that take part."""
        found = self.context.low_rank(self.indices[index])
        if found is not None and found.first.shape[0] < min(self.shape):
            outputs_first = found.transposed == self.context.inputs_first
            return TaskMatrix(None, found.factors(outputs_first=outputs_first), 0.0)
        stored = self._flat[self.indices[index]][:]
        noise = _ROUNDING * float(stored.norm()) / math.sqrt(stored.numel()) * sum(map(math.sqrt, self.shape))
        return TaskMatrix(self._oriented(stored - self._origin[:]).double(), None, noise)

    def vector(self, index: int) -> TaskVector:
        """Return the task vector of the index-th of the sources that take part, as it is stored."""
        return TaskVector(self._flat[self.indices[index]], self._origin)

    def matrices(self) -> list[TaskMatrix]:
        """Return all of them."""
        return [self.matrix(index) for index in range(len(self))]

    def dense(self, index: int) -> Tensor:
        """Return a task vector as a float32 matrix, which may be changed."""
        return self._oriented(self.vector(index)[:])

    def svd(self, index: int) -> Svd:
        """Return the SVD of a task vector in float32, kept between candidates."""
        return Svd(*self.context.filed(f"svd {self.ids[index]}", lambda: rounded(self.matrix(index).svd())))

    def of_all(self, what: str) -> str:
        """Return a name for what is kept of all sources that take part."""
        return f"{what} of {' '.join(self.ids)}"

    def linear(self, factors: Sequence[float]) -> Tensor:
        """Return θ_0 + Σ c_i τ_i, span by span; the base bit by bit where no factor is left."""
        used = {index: factor for index, factor in zip(self.indices, factors, strict=True) if factor != 0}
        out = result_like(self._like, self.context)
        return summed(self._flat, self._origin, used, Whole(), out).view(self._like.shape)

    def others(self, scale: float) -> Tensor:
        """Return what a tensor becomes that is no matrix: θ_0 + λ mean(w_i τ_i), or θ_0."""
        factor = scale / max(1, len(self)) if self._others == "mean" else 0.0
        return self.linear([factor * weight for weight in self.weights])

    def result(self, task: Tensor) -> Tensor:
        """Return θ_0 plus a task vector given as a matrix (outputs, inputs)."""
        return self.result_as_stored(task.T if self.context.inputs_first else task)

    def result_as_stored(self, task: Tensor) -> Tensor:
        """Return θ_0 plus a task vector of the tensor's own shape."""
        flat = task.float().contiguous().view(-1)
        return (flat + self._origin[:]).to(self.context.dtype).view(self._like.shape)

    def weighted(self, matrices: Sequence[Tensor], scale: float) -> Tensor:
        """Return θ_0 + λ Σ w_i M_i of float32 matrices (outputs, inputs)."""
        total = torch.zeros_like(matrices[0])
        for weight, matrix in zip(self.weights, matrices, strict=True):
            total.add_(matrix, alpha=scale * weight)
        return self.result(total)

    def _oriented(self, vector: Tensor) -> Tensor:
        matrix = vector.view(self._like.shape)
        return matrix.T.contiguous() if self.context.inputs_first else matrix


def svd(matrix: Tensor, noise: float = 0.0) -> Svd:
    """Return the thin SVD of a float64 matrix through the Gram matrix of its smaller side.

    Args:
        matrix: (m, n), m, n > 0.
        noise: singular values up to this are 0.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, near = torch.linalg.eigh(_gram(matrix))
    values = squares.flip(0).clamp_(min=0.0).sqrt_()
    rank = _rank(values, noise)
    values, near = values[:rank], near.flip(1)[:, :rank]
    far = (matrix.T @ near if wide else matrix @ near) / values
    return Svd(near, values, far) if wide else Svd(far, values, near)


def factored_svd(left: Tensor, right: Tensor) -> Svd:
    """Return the thin SVD of left right, float64, through QR factors and a core of the rank's size."""
    near, upper = torch.linalg.qr(left)
    far, lower = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    rank = _rank(values, 0.0)
    return Svd(near @ u[:, :rank], values[:rank], far @ v[:rank].T)


def _gram(matrix: Tensor) -> Tensor:
    """Return the Gram matrix of the smaller side."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _rank(values: Tensor, noise: float) -> int:
    return int((values > max(float(values[0]) * SMALLEST_VALUE, noise)).sum()) if len(values) else 0


def rounded(tensors: Tensors) -> Tensors:
    """Return tensors in float32, as they are kept."""
    return tuple(tensor.float() for tensor in tensors)


def polar(stack: Tensor) -> Tensor:
    """Return the orthogonal polar factor of a float64 matrix, a partial isometry on its numerical rank.

    U Vᵀ of a plain SVD would be arbitrary on the null space: twice the same directions would gain others from nowhere.
    """
    if stack.numel() == 0:
        return stack
    wide = stack.shape[0] <= stack.shape[1]
    squares, near = torch.linalg.eigh(_gram(stack))
    keep = squares > float(squares[-1]) * _SMALLEST_COMMON**2
    near = near[:, keep]
    inverse_root: Tensor = (near / squares[keep].sqrt()) @ near.T
    return inverse_root @ stack if wide else stack @ inverse_root
