"""PCB-Merging and WIDEN, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.metadata import Setting
from evomerge.testing.operators import OperatorCase, blend
from tests.operators.spectra import run_model


def run(method: str, deltas: Sequence[object], base: object = 0.0, **params: Setting) -> np.ndarray:
    """Blend task vectors over a base."""
    root = torch.tensor(np.broadcast_to(np.asarray(base, dtype=np.float32), np.shape(deltas[0])))
    tensors = [root + torch.tensor(np.asarray(delta, dtype=np.float32)) for delta in deltas]
    return blend(OperatorCase(spec=get(method)), tensors, root, settings=params, aliases="abcd").numpy()


def pcb_oracle(deltas: np.ndarray, density: float, clip: float, gain: float | None) -> np.ndarray:
    """By full sorts; with no gain, the released tanh of products that are not normalised."""
    count, size = deltas.shape
    rms = 1.0 if gain is None else np.sqrt((deltas**2).mean())
    factor = 1.0 if gain is None else gain
    top, bottom = np.zeros(size), np.zeros(size)
    for delta in deltas:
        ordered = np.sort(np.abs(delta))
        beyond = int(clip * size)
        clipped = np.clip(np.abs(delta), ordered[beyond], ordered[size - 1 - beyond])
        within = (clipped - clipped.min()) / (clipped.max() - clipped.min())
        score = np.exp(count * within**2) * np.tanh(factor * delta * deltas.sum(axis=0) / rms**2)
        limit = np.sort(score)[::-1][max(1, int(density * size))]
        share = np.clip(score - limit, 0, None) / (score.max() - limit)
        top += share * clipped * np.sign(delta)
        bottom += share
    return top / np.where(bottom > 0, bottom, 1.0)


def test_pcb_by_hand() -> None:
    """Two of five are kept of each source, and no entry of both."""
    deltas = [[5.0, -4.0, 3.0, -2.0, 1.0], [1.0, -2.0, 3.0, 4.0, -5.0]]
    assert run("pcb", deltas, density=0.4, clip=0.0, gain=1.0).tolist() == [5.0, -4.0, 0.0, 4.0, -5.0]


@pytest.mark.parametrize("size", [500, 300_000])
@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_pcb_follows_the_formula(size: int, gain: float) -> None:
    """Tolerance: float32 scores near the limit, where β is about 0, weigh one source against another."""
    deltas = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32).astype(np.float64)
    result = run("pcb", list(deltas), density=0.2, clip=0.01, gain=gain)
    expected = pcb_oracle(deltas, 0.2, 0.01, gain)
    off = np.abs(result - expected) > 1e-4
    assert off.mean() < 2e-4
    assert 0.3 < (result != 0).mean() < 0.55


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_pcb_over_a_whole_model_is_pcb_of_all_its_entries(density: float) -> None:
    """Tensors of very different size; one in which nothing changed, one of a single entry, an empty one."""
    rng = np.random.default_rng(5)
    shapes: list[tuple[int, ...]] = [(4, 5), (20, 30), (17,), (), (0, 3)]
    model = [
        [np.asarray(size * rng.standard_normal(shape), dtype=np.float32).astype(np.float64) for _ in range(3)]
        for size, shape in enumerate(shapes)
    ]
    merged = run_model("pcb", model, density=density, clip=0.01, gain=1.0, scope="global")
    whole = [np.concatenate([tasks[index].ravel() for tasks in model]) for index in range(3)]
    actual = np.concatenate([tensor.ravel() for tensor in merged])
    np.testing.assert_array_equal(actual, run("pcb", whole, density=density, clip=0.01, gain=1.0))
    if density < 1:
        off = np.abs(actual - pcb_oracle(np.stack(whole), density, 0.01, 1.0)) > 1e-4 * np.abs(actual).max()
        assert off.mean() < 2e-3


def test_pcb_over_a_whole_model_leaves_out_what_changed_nowhere() -> None:
    """A source that equals the base in one tensor still competes there."""
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((2, 12)).astype(np.float32).astype(np.float64)
    zero = np.zeros(12)
    merged = run_model("pcb", [[first, zero, zero], [zero, second, zero]], density=0.5, clip=0.0, scope="global")
    alone = run_model("pcb", [[first, zero], [zero, second]], density=0.5, clip=0.0, scope="global")
    for actual, expected in zip(merged, alone, strict=True):
        np.testing.assert_array_equal(actual, expected)
    assert all(tensor.any() for tensor in merged)


def test_a_small_gain_is_the_released_formula_on_an_ordinary_fine_tune() -> None:
    """Task vectors of about 1e-3, whose products are deep in the linear range of tanh."""
    deltas = np.random.default_rng(1).standard_normal((3, 2000)) * 1e-3
    deltas = deltas.astype(np.float32).astype(np.float64)
    result = run("pcb", list(deltas), density=0.1, gain=1e-4)
    expected = pcb_oracle(deltas, 0.1, 1e-4, None)
    assert (np.abs(result - expected) <= 1e-3 * np.abs(expected) + 1e-7).mean() > 0.998


def test_pcb_leaves_out_sources_that_equal_the_base_and_opposed_entries() -> None:
    deltas = np.random.default_rng(2).standard_normal((2, 80)).astype(np.float32)
    with_zero = run("pcb", [deltas[0], np.zeros(80), deltas[1]], density=0.3)
    assert np.isfinite(with_zero).all()
    np.testing.assert_array_equal(np.sort(with_zero), np.sort(run("pcb", list(deltas), density=0.3)))
    assert run("pcb", [[0.0, 0.0]] * 2).tolist() == [0.0, 0.0]
    assert run("pcb", [[2.0, 3.0], [-2.0, -3.0]], density=1.0).tolist() == [0.0, 0.0]


def test_pcb_scales_exactly_and_keeps_equal_magnitudes() -> None:
    deltas = np.random.default_rng(3).standard_normal((3, 200)).astype(np.float32)
    large, tiny = run("pcb", list(deltas)), run("pcb", list(deltas * np.float32(2.0**-30)))
    np.testing.assert_array_equal(tiny * 2.0**30, large)
    assert run("pcb", [[1.0, 1.0, -1.0]], density=0.4).tolist() == [1.0, 1.0, -1.0]
    assert run("pcb", [[2.0]], weight=0.5).tolist() == [1.0]


def test_pcb_weights_count_inside_the_mean() -> None:
    deltas = [[4.0, 0.0, 0.0, 1.0], [0.0, 0.0, 8.0, 1.0]]
    result = run("pcb", deltas, density=0.25, weight={"a": 0.5, "b": 2.0}, clip=0.0)
    assert result.tolist() == [2.0, 0.0, 16.0, 0.0]


def widen_oracle(base: np.ndarray, deltas: np.ndarray, t: float, s: float) -> np.ndarray:
    """Column by column, equal columns by place."""
    columns = base.shape[1]
    scores = []
    for moved in ("length", "direction"):
        ranks = []
        for delta in deltas:
            tuned = base + delta
            before, after = np.linalg.norm(base, axis=0), np.linalg.norm(tuned, axis=0)
            change = np.abs(after - before) if moved == "length" else 1 - (base * tuned).sum(axis=0) / before / after
            ranks.append(np.argsort(np.argsort(change, kind="stable"), kind="stable") / columns)
        shares = np.exp(ranks) / np.exp(ranks).sum(axis=0)
        means = np.mean(ranks, axis=1, keepdims=True)
        scores.append(np.where(np.array(ranks) > t * means, s, shares))
    weights = np.mean(scores, axis=0)
    return base + (weights[:, None, :] * deltas).sum(axis=0)


def test_widen_by_hand() -> None:
    """Equal columns by place: the first source has weight 0.75 in its column, the second 1."""
    deltas = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
    result = run("widen", deltas, base=np.eye(2), ties="position")
    assert result.tolist() == [[1.75, 1.0], [0.0, 1.0]]


def test_unchanged_columns_share_their_rank() -> None:
    """In the first source both directions are unmoved: rank 1/4 against 0 of the second in the first column."""
    deltas = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
    share = (1 + 1 / (1 + np.exp(-0.25))) / 2
    np.testing.assert_allclose(run("widen", deltas, base=np.eye(2)), [[1 + share, 1.0], [0.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.3, 0.7), (1.7, 1.2)])
def test_widen_follows_the_definition(t: float, s: float) -> None:
    rng = np.random.default_rng(0)
    base, deltas = rng.standard_normal((12, 20)), rng.standard_normal((3, 12, 20)) * 0.3
    base, deltas = base.astype(np.float32).astype(np.float64), deltas.astype(np.float32).astype(np.float64)
    tuned = (base.astype(np.float32) + deltas.astype(np.float32)).astype(np.float64)
    expected = widen_oracle(base, tuned - base, t, s)
    for ties in ("mean", "position"):
        np.testing.assert_allclose(run("widen", list(deltas), base=base, t=t, s=s, ties=ties), expected, atol=1e-5)


def test_columns_are_inputs_and_tokens() -> None:
    """Each row of an embedding or of a matrix stored as (inputs, outputs) has its own weight, but not of the head."""
    rng = np.random.default_rng(1)
    base, deltas = torch.from_numpy(rng.standard_normal((3, 9, 5)).astype(np.float32)).split([1, 2])
    tensors = list(base + 0.2 * deltas)
    spec = get("widen")

    def widened(sources: Sequence[torch.Tensor], root: torch.Tensor, **known: Any) -> torch.Tensor:
        context = Context(source_ids=("a", "b"), **{"name": "layer.weight", **known})
        return load(spec)(sources, root, spec.complete({}, ["a", "b"]), context)

    by_column = widened([tensor.t() for tensor in tensors], base[0].t()).t()
    by_token = widened(tensors, base[0], name="model.embed_tokens.weight", is_vocabulary=True)
    torch.testing.assert_close(by_token, by_column)
    torch.testing.assert_close(widened(tensors, base[0], inputs_first=True), by_column)
    assert not torch.allclose(widened(tensors, base[0], name="lm_head.weight", is_vocabulary=True), by_column)


def test_entries_of_a_vector_rank_by_their_change() -> None:
    """Ranks (0, 1/3, 2/3) and (2/3, 0, 1/3), mean 1/3: only 2/3 is above it."""
    weights = run("widen", [[1.0, 2.0, -3.0], [3.0, 1.0, 2.0]])
    low, even = 1 / (1 + np.exp(2 / 3)), 1 / (1 + np.exp(-1 / 3))
    np.testing.assert_allclose(weights, [low + 3.0, 2 * even + (1 - even), -3.0 + 2 / (1 + np.exp(1 / 3))], rtol=1e-6)


def test_a_high_threshold_is_a_softmax_that_gives_equal_sources_themselves() -> None:
    rng = np.random.default_rng(2)
    base, delta = rng.standard_normal((2, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(run("widen", [delta] * 3, base=base, t=2.5), base + delta, rtol=1e-5, atol=1e-6)


def test_weights_stay_with_their_places_beyond_one_span() -> None:
    """The upper half by size has the score 0; rows that grow without turning have that as half of their score."""
    size = 150_000
    assert np.array_equal(run("widen", [np.arange(size) + 1.0], s=0.0) != 0, np.arange(size) < size // 2)
    spec, context = get("widen"), Context(name="embed", source_ids=("a",), is_vocabulary=True)
    base = torch.ones(300, 500)
    growth = torch.arange(1.0, 301.0).unsqueeze(1) / 256
    result = load(spec)([base + growth], base, spec.complete({"s": 0.0}, ["a"]), context)
    weights = torch.where(torch.arange(300) < 150, 1.0, 0.5).unsqueeze(1)
    torch.testing.assert_close(result, base + weights * growth)


def test_columns_of_zeros_are_blended() -> None:
    """A column that is 0 in the base has no direction; its length still counts."""
    base, delta = np.eye(3), np.ones((3, 3))
    base[:, 1] = 0
    result = run("widen", [delta, -delta, 0 * delta], base=base)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(run("widen", [delta], base=base), base + delta)


def test_turns_too_small_for_a_cosine_are_ranked() -> None:
    """1 - cos is 1e-16 and less, nothing beside 1 in float64; the two columns that moved most have the score 0."""
    base, delta = np.zeros((3, 4)), np.zeros((3, 4))
    base[0] = 1.0
    delta[1] = np.array([3.0, 1.0, 4.0, 2.0]) * 1e-8
    assert (run("widen", [delta], base=base, s=0.0)[1] != 0).tolist() == [False, True, False, True]
