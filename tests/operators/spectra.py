"""What the tests of spectral methods share: a runner, and NumPy's own decompositions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.operators import get, load
from evomerge.operators.kernels.context import Arguments, Context, Model, Tensors

Matrix = NDArray[np.float64]


def run(method: str, tasks: Sequence[object], base: object = None, *, context: Any = None, **params: Any) -> Matrix:
    """Merge sources given by their task vectors; a list is a parameter with one value a source."""
    aliases = [f"s{index}" for index in range(len(tasks))]
    used = {
        key: dict(zip(aliases, value, strict=True)) if isinstance(value, list) else value
        for key, value in params.items()
    }
    spec = get(method)
    deltas = [torch.tensor(np.asarray(task, dtype=np.float32)) for task in tasks]
    origin = torch.zeros_like(deltas[0]) if base is None else torch.tensor(np.asarray(base, dtype=np.float32))
    told = Context(name="p", source_ids=tuple(aliases), **(context or {}))
    tensors = [origin + delta for delta in deltas]
    return load(spec)(tensors, origin, spec.complete(used, aliases), told).double().numpy()


def run_model(method: str, model: Sequence[Sequence[Matrix]], **params: Any) -> list[Matrix]:
    """Merge a model over a base of 0, its tensors given by their task vectors, with passes over all of it."""
    aliases = [f"s{index}" for index in range(len(model[0]))]
    spec = get(method)
    settings = spec.complete(params, aliases)
    passes: list[str] = []

    def arguments() -> Iterator[Arguments]:
        for number, tasks in enumerate(model):
            deltas = [torch.tensor(task, dtype=torch.float32) for task in tasks]
            context = Context(name=f"p{number}", source_ids=tuple(aliases), of_model=of_model)
            yield deltas, torch.zeros_like(deltas[0]), context

    def of_model(what: str, make: Callable[[Model], Tensors]) -> Tensors:
        passes.append(what)
        return make(arguments)

    merged = [load(spec)(tensors, base, settings, context) for tensors, base, context in arguments()]
    assert passes, "the model was never looked at"
    return [tensor.double().numpy() for tensor in merged]


def draw(seed: int, *shape: int, count: int = 3) -> list[Matrix]:
    """Return random task vectors that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for _ in range(count)]


def low_rank(seed: int, rows: int, columns: int, rank: int, count: int = 3) -> list[Matrix]:
    """Return products of random factors with small whole numbers, exact in float32."""
    rng = np.random.default_rng(seed)
    return [
        (rng.integers(-4, 5, (rows, rank)) @ rng.integers(-4, 5, (rank, columns))).astype(np.float64)
        for _ in range(count)
    ]


def svd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return NumPy's thin SVD."""
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    return u, values, vt


def relative(actual: Matrix, expected: Matrix) -> float:
    """Return ‖actual - expected‖ / ‖expected‖."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
