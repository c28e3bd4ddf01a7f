from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.operators import block_grams
from evomerge.operators.block_grams import BlockGrams, block_size, num_blocks
from evomerge.spaces.grams import Grams

Vectors = NDArray[np.float32]


def siblings(count: int, size: int, *, seed: int = 0, cosine: float = 0.99995) -> Vectors:
    """Return vectors of one base, near that cosine to each other."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=size)
    spread = math.sqrt(1.0 / cosine - 1.0)
    return np.array([base + spread * rng.normal(size=size) for _ in range(count)], dtype=np.float32)


def exact(one: Vectors, other: Vectors) -> float:
    """Return an inner product, correctly rounded: products of float32 numbers are exact in float64."""
    return math.fsum((one.astype(np.float64) * other.astype(np.float64)).tolist())


def test_the_gram_of_any_stretch_is_exact_to_a_few_roundings_however_much_lies_before_it() -> None:
    vectors = siblings(3, 9_000)
    vectors[:, :6_000] *= 1e2  # what is subtracted is twelve orders of magnitude larger than some of what is left
    vectors[:, 7_000:] *= 1e-2
    grams = Grams.of_vectors(["a", "b", "c"], {"whole": list(vectors)})
    ends = np.array([1, 2, 5_999, 6_000, 6_001, 7_000, 7_001, 7_002, 8_500, 8_999, 9_000])
    rows, columns = grams.pairs
    for start, stop, found in zip([0, *ends[:-1]], ends, grams.stretches(ends), strict=True):
        parts = vectors[:, start:stop]
        expected = [exact(parts[row], parts[column]) for row, column in zip(rows, columns, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=2e-15)


def test_angles_of_near_parallel_siblings_are_right_on_short_stretches() -> None:
    vectors = siblings(2, 40_000, cosine=1 - 1e-9)
    grams = Grams.of_vectors(["a", "b"], {"whole": list(vectors)})
    ends = np.array([20_000, 20_040, 40_000])
    (one, both, other) = grams.stretches(ends)[1]
    wide = vectors[:, 20_000:20_040].astype(np.longdouble)
    sine = np.sqrt(1 - (wide[0] @ wide[1]) ** 2 / ((wide[0] @ wide[0]) * (wide[1] @ wide[1])))
    assert math.sin(math.acos(both / math.sqrt(one * other))) == pytest.approx(float(sine), rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 65_536, 65_537, 200_000])
def test_blocks_are_single_weights_up_to_65536_and_never_more_blocks_than_that(size: int) -> None:
    assert num_blocks(size) <= 65_536
    assert (num_blocks(size) - 1) * block_size(size) < size <= num_blocks(size) * block_size(size)
    assert (block_size(size) == 1) == (size <= 65_536)


def test_stretches_that_come_in_uneven_parts_give_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_grams, "MAX_POSITIONS", 100)
    vectors = siblings(2, 1_234)  # 95 blocks of 13
    sums = BlockGrams(2, 1_234)
    cuts = [0, 5, 5, 13, 14, 400, 1_233, 1_234]
    for start, stop in itertools.pairwise(cuts):
        sums.add(list(vectors[:, start:stop]))
    found = sums.result()
    assert found.shape == (95, 3)
    for block in (0, 1, 30, 94):
        parts = vectors[:, 13 * block : 13 * block + 13]
        expected = [exact(parts[0], parts[0]), exact(parts[0], parts[1]), exact(parts[1], parts[1])]
        np.testing.assert_allclose(found[block], expected, rtol=1e-14)


def test_weights_before_a_position_count_blocks_and_shorter_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_grams, "MAX_POSITIONS", 4)
    one, two = siblings(2, 10), siblings(2, 3)
    grams = Grams.of_vectors(["a", "b"], {"mlp": list(one), "rest": list(two)})
    assert [(part.name, part.size, part.positions) for part in grams.chromosomes] == [("mlp", 10, 4), ("rest", 3, 3)]
    assert grams.weights_before(np.arange(1, 8)).tolist() == [3, 6, 9, 10, 11, 12, 13]
    assert grams.is_end(np.arange(0, 8)).tolist() == [True, False, False, False, True, False, False, True]


def test_what_does_not_come_to_the_declared_size_is_refused() -> None:
    sums = BlockGrams(2, 10)
    with pytest.raises(ValueError, match="only 0 came"):
        sums.result()
    with pytest.raises(ValueError, match="got 11"):
        sums.add([np.zeros(11), np.zeros(11)])
    with pytest.raises(ValueError, match="expected float64 of shape"):
        Grams(
            ("a", "b"), Grams.of_vectors(["a", "b"], {"whole": list(siblings(2, 5))}).chromosomes, np.zeros((3, 2, 3))
        )


def test_the_digest_tells_sources_and_weights_apart() -> None:
    vectors = list(siblings(2, 5))
    digest = Grams.of_vectors(["a", "b"], {"whole": vectors}).digest
    assert digest == Grams.of_vectors(["a", "b"], {"whole": vectors}).digest
    assert digest != Grams.of_vectors(["b", "a"], {"whole": vectors}).digest
    assert digest != Grams.of_vectors(["a", "b"], {"whole": vectors[::-1]}).digest
