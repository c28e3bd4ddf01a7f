"""Order statistics of vectors that stream by together, against a sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.operators.kernels.ranks import ranked


@pytest.mark.parametrize("size", [1, 7, 1 << 17, (1 << 17) + 1, 300_000])
def test_ranks_are_those_of_a_sort(size: int) -> None:
    rng = np.random.default_rng(size)
    vectors = torch.from_numpy(rng.standard_normal((2, size)).astype(np.float32))
    vectors[1] = vectors[1].bfloat16()  # many equal magnitudes
    passes = []

    def stream() -> Iterator[list[Tensor]]:
        passes.append(1)
        for start in range(0, size, 100_000):
            yield [vector[start : start + 100_000] for vector in vectors]

    ranks = [[1, max(1, size // 3), size], [max(1, size // 2)]]
    expected = [
        [float(np.sort(np.abs(v))[::-1][k - 1]) for k in r] for v, r in zip(vectors.numpy(), ranks, strict=True)
    ]
    assert ranked(stream, size, ranks) == expected
    assert len(passes) <= 2
