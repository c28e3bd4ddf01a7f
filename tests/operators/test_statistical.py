"""Fisher, RegMean and OTA against NumPy in float64 and against numbers checked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from evomerge.errors import NotBuiltError, SourceError
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context, Statistic

Array = NDArray[np.float64]
finite = st.floats(-4, 4, width=32)
positive = st.floats(0.015625, 4, width=32)
stacks = hnp.arrays(np.float32, (3, 12), elements=finite)
importances = hnp.arrays(np.float32, (3, 12), elements=positive)
shares = st.lists(st.floats(0.125, 2), min_size=3, max_size=3)


def run(
    method: str,
    tensors: Sequence[Any],
    measured: Sequence[Any | None],
    *,
    base: Any = None,
    inputs_first: bool = False,
    threshold: Any = None,
    **params: Any,
) -> Array:
    aliases = [f"s{index}" for index in range(len(tensors))]
    used = {
        key: dict(zip(aliases, value, strict=True)) if isinstance(value, list) else value
        for key, value in params.items()
    }
    found = [item if item is None or isinstance(item, Statistic) else statistic(item) for item in measured]
    spec = get(method)
    result = load(spec)(
        [tensor(item) for item in tensors],
        None if base is None else tensor(base),
        spec.complete(used, aliases),
        Context(
            name="p",
            source_ids=tuple(aliases),
            statistic=lambda index, _kind: found[index],
            inputs_first=inputs_first,
            threshold=threshold,
        ),
    )
    return result.double().numpy()


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32))


def statistic(values: Any, **facts: float) -> Statistic:
    return Statistic(tensor=tensor(values), **facts)


class TestFisher:
    def test_two_numbers_by_hand(self) -> None:
        assert run("fisher", [[1.0], [3.0]], [[3.0], [1.0]], normalize=False) == pytest.approx([1.5])

    @settings(max_examples=60, deadline=None)
    @given(stack=stacks, importance=importances, weight=shares)
    def test_it_is_the_mean_weighted_by_share_and_fisher(
        self, stack: Array, importance: Array, weight: list[float]
    ) -> None:
        c, f = np.array(weight)[:, None], importance.astype(np.float64)
        exact = (c * f * stack).sum(0) / (c * f).sum(0)
        actual = run("fisher", list(stack), list(importance), weight=weight, normalize=False)
        np.testing.assert_allclose(actual, exact, rtol=2e-6, atol=1e-5)

    @settings(max_examples=40, deadline=None)
    @given(stack=stacks, importance=importances)
    def test_each_entry_lies_between_those_of_the_sources(self, stack: Array, importance: Array) -> None:
        actual = run("fisher", list(stack), list(importance))
        assert (actual >= stack.min(0) - 1e-5).all()
        assert (actual <= stack.max(0) + 1e-5).all()

    @pytest.mark.parametrize("factor", [1e-30, 1e-18, 1e20])
    def test_a_common_factor_of_all_fishers_cancels_however_small(self, factor: float) -> None:
        stack, importance = np.array([[1.0, 5.0], [3.0, 1.0]]), np.array([[4.0, 0.0], [1.0, 2.0]])
        expected = run("fisher", stack, [statistic(row) for row in importance], normalize=False)
        scaled = [statistic(row * factor, median=factor, norm=factor) for row in importance]
        np.testing.assert_allclose(run("fisher", stack, scaled, normalize=False), expected, rtol=1e-6)
        np.testing.assert_allclose(run("fisher", stack, scaled), expected, rtol=1e-6)

    def test_normalized_each_fisher_counts_over_its_norm(self) -> None:
        measured = [statistic([30.0], norm=10.0, median=10.0), statistic([1.0])]
        assert run("fisher", [[1.0], [3.0]], measured) == pytest.approx([1.5])

    def test_where_all_fishers_are_zero_it_is_the_mean_by_share(self) -> None:
        """With a floor, since all floors are equal; without one, since nothing else is known."""
        for floor in (1e-6, 0.0):
            actual = run("fisher", [[1.0], [3.0]], [[0.0], [0.0]], weight=[3.0, 1.0], floor=floor)
            assert actual == pytest.approx([1.5])

    def test_a_floor_keeps_a_source_in_where_its_fisher_is_zero(self) -> None:
        measured = [statistic([0.0], median=2.0), statistic([2.0], median=2.0)]
        assert run("fisher", [[1.0], [3.0]], measured, floor=0.5, normalize=False) == pytest.approx([(0.5 + 3.0) / 1.5])
        assert run("fisher", [[1.0], [3.0]], measured, floor=0.0, normalize=False) == pytest.approx([3.0])

    def test_a_parameter_that_a_source_has_none_of_is_the_mean(self) -> None:
        assert run("fisher", [[1.0], [3.0]], [[3.0], None], weight=[3.0, 1.0]) == pytest.approx([1.5])

    def test_equal_sources_come_out_to_the_last_bit(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.standard_normal(500).astype(np.float32)
        actual = run("fisher", [values] * 3, [rng.random(500) for _ in range(3)], weight=[0.3, 0.7, 0.11])
        assert (actual == values).all()

    def test_a_fisher_of_another_shape_or_none_at_all_is_refused(self) -> None:
        with pytest.raises(SourceError, match=r"its statistic 'fisher' has shape \(2,\), not \(1,\)"):
            run("fisher", [[1.0]], [[1.0, 2.0]])
        with pytest.raises(SourceError, match="needs the statistic 'fisher'"):
            load(get("fisher"))(
                [tensor([1.0])], None, get("fisher").complete({}, ["a"]), Context(name="p", source_ids=("a",))
            )


def grams(rng: np.random.Generator, count: int, inputs: int, tokens: int) -> list[Array]:
    found = []
    for _ in range(count):
        rows = rng.standard_normal((tokens, inputs)) * rng.uniform(0.1, 3, inputs)
        found.append((rows.T @ rows / tokens).astype(np.float32).astype(np.float64))
    return found


class TestRegMean:
    def test_diagonal_grams_by_hand(self) -> None:
        measured = [np.diag([3.0, 1.0]), np.diag([1.0, 3.0])]
        for alpha in (0.0, 0.5, 1.0):
            actual = run("regmean", [[[1.0, 2.0]], [[3.0, 4.0]]], measured, alpha=alpha)
            np.testing.assert_allclose(actual, [[1.5, 3.5]], rtol=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 10**6), alpha=st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]), weight=shares)
    def test_it_solves_the_normal_equations(self, seed: int, alpha: float, weight: list[float]) -> None:
        """Σ c_i (M - W_i) G̃_i = 0, by NumPy's own solver."""
        rng = np.random.default_rng(seed)
        stack = rng.standard_normal((3, 4, 6)).astype(np.float32)
        found = grams(rng, 3, 6, 40)
        shrunk = [alpha * gram + (1 - alpha) * np.diag(np.diag(gram)) for gram in found]
        left = sum(c * w.astype(np.float64) @ g for c, w, g in zip(weight, stack, shrunk, strict=True))
        right = sum(c * g for c, g in zip(weight, shrunk, strict=True))
        exact = np.linalg.solve(right.T, left.T).T
        actual = run("regmean", list(stack), found, alpha=alpha, weight=weight)
        np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-5)

    def test_no_other_matrix_is_nearer_to_the_sources_outputs(self) -> None:
        rng = np.random.default_rng(1)
        stack, found = rng.standard_normal((2, 3, 5)), grams(rng, 2, 5, 30)

        def distance(matrix: Array) -> float:
            return sum(float(np.trace((matrix - w) @ g @ (matrix - w).T)) for w, g in zip(stack, found, strict=True))

        best = run("regmean", list(stack), found, alpha=1.0)
        for _ in range(20):
            assert distance(best) <= distance(best + 1e-2 * rng.standard_normal((3, 5)))

    def test_conv1d_weights_are_stored_the_other_way_round(self) -> None:
        rng = np.random.default_rng(2)
        stack, found = rng.standard_normal((2, 5, 5)), grams(rng, 2, 5, 30)
        expected = run("regmean", list(stack), found)
        actual = run("regmean", [matrix.T.copy() for matrix in stack], found, inputs_first=True)
        np.testing.assert_allclose(actual.T, expected, rtol=1e-6)

    def test_fewer_tokens_than_inputs_leave_the_rest_at_the_mean(self) -> None:
        """One token along (1, 1): only the sum of the columns is decided, by the first source alone; it is 4."""
        gram = np.array([[1.0, 1.0], [1.0, 1.0]])
        actual = run("regmean", [[[4.0, 0.0]], [[1.0, 1.0]]], [gram, np.zeros((2, 2))], alpha=1.0)
        np.testing.assert_allclose(actual, [[3.0, 1.0]], rtol=1e-5)

    @pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
    def test_inputs_that_are_always_zero_have_the_mean(self, alpha: float) -> None:
        rng = np.random.default_rng(3)
        stack, found = rng.standard_normal((2, 3, 4)).astype(np.float32), grams(rng, 2, 4, 20)
        for gram in found:
            gram[2] = gram[:, 2] = 0
        actual = run("regmean", list(stack), found, alpha=alpha)
        np.testing.assert_allclose(actual[:, 2], stack.mean(0)[:, 2], rtol=1e-6)
        assert np.abs(actual - stack.mean(0))[:, [0, 1, 3]].max() > 0.01
        zero = run("regmean", list(stack), [np.zeros((4, 4))] * 2, alpha=alpha)
        np.testing.assert_allclose(zero, stack.mean(0), rtol=1e-6)

    def test_many_inputs_and_few_tokens_stay_bounded(self) -> None:
        """α = 1 and rounding of float32: directions that no token shows must not blow up."""
        rng = np.random.default_rng(4)
        stack, found = rng.standard_normal((3, 8, 64)), grams(rng, 3, 64, 12)
        actual = run("regmean", list(stack), found, alpha=1.0)
        assert np.abs(actual).max() < 4 * np.abs(stack).max()

    @pytest.mark.parametrize("factor", [1e-12, 1e12])
    def test_a_common_factor_of_all_grams_cancels(self, factor: float) -> None:
        rng = np.random.default_rng(5)
        stack, found = rng.standard_normal((2, 3, 4)), grams(rng, 2, 4, 20)
        for alpha in (0.9, 1.0):
            expected = run("regmean", list(stack), found, alpha=alpha)
            actual = run("regmean", list(stack), [gram * factor for gram in found], alpha=alpha)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)

    def test_what_is_no_matrix_or_has_no_gram_is_the_mean(self) -> None:
        assert run("regmean", [[1.0], [3.0]], [None, None], weight=[3.0, 1.0]) == pytest.approx([1.5])
        actual = run("regmean", [[[1.0, 1.0]], [[3.0, 3.0]]], [np.eye(2), None])
        np.testing.assert_allclose(actual, [[2.0, 2.0]])

    def test_a_gram_of_another_size_is_refused(self) -> None:
        with pytest.raises(SourceError, match=r"its Gram matrix has shape \(3, 3\), expected \(2, 2\)"):
            run("regmean", [[[1.0, 2.0]]], [np.eye(3)])


def oracle_ota(stack: Array, v: Array, base: Array, *, c: Array, density: float, power: float) -> Array:
    """NumPy, float64, scope tensor: the k-th largest score by a sort."""
    tau = stack.astype(np.float64) - base
    score = v * tau**2
    kept = np.zeros_like(score, dtype=bool)
    for row, scores in enumerate(score):
        count = max(1, int(density * scores.size))
        kept[row] = scores >= np.sort(scores)[::-1][count - 1]
    weight = c[:, None] * v**power * kept
    total = weight.sum(0)
    return base + np.divide((weight * tau).sum(0), total, out=np.zeros_like(total), where=total > 0)


class TestOta:
    def test_two_numbers_by_hand(self) -> None:
        actual = run("ota", [[3.0], [0.0]], [[4.0], [1.0]], base=[0.0], density=1.0, power=0.5)
        assert actual == pytest.approx([2.0])

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        density=st.sampled_from([0.1, 0.4, 0.75, 1.0]),
        power=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        weight=shares,
    )
    def test_it_averages_what_is_kept_by_a_power_of_its_importance(
        self, seed: int, density: float, power: float, weight: list[float]
    ) -> None:
        rng = np.random.default_rng(seed)
        base, stack = rng.standard_normal(40).astype(np.float32), rng.standard_normal((3, 40)).astype(np.float32)
        v = rng.lognormal(size=(3, 40)).astype(np.float32)
        exact = oracle_ota(stack, v.astype(float), base.astype(float), c=np.array(weight), density=density, power=power)
        actual = run("ota", stack, v, base=base, scope="tensor", density=density, power=power, weight=weight)
        np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("scale", [1e-18, 1e-30])
    def test_moments_as_small_as_adams_are_not_swamped(self, scale: float) -> None:
        """An absolute ε of 1e-8 would make this the plain mean."""
        measured = [statistic([4.0 * scale], mean=scale), statistic([1.0 * scale], mean=scale)]
        actual = run("ota", [[3.0], [0.0]], measured, base=[0.0], density=1.0, power=0.5)
        assert actual == pytest.approx([2.0], rel=1e-6)

    def test_an_entry_that_no_source_keeps_is_the_bases(self) -> None:
        actual = run("ota", [[5.0, 1.25]], [[1.0, 1.0]], base=[1.0, 1.0], scope="tensor", density=0.5)
        assert actual == pytest.approx([5.0, 1.0])

    def test_a_masked_entry_does_not_dilute_the_others(self) -> None:
        actual = run("ota", [[4.0, 0.1], [0.2, 9.0]], [[1.0, 1.0]] * 2, base=[0.0, 0.0], scope="tensor", density=0.5)
        assert actual == pytest.approx([4.0, 9.0])

    def test_where_all_importances_are_zero_it_is_the_mean_of_what_is_kept(self) -> None:
        actual = run("ota", [[4.0], [1.0]], [[0.0], [0.0]], base=[0.0], density=1.0, weight=[2.0, 1.0])
        assert actual == pytest.approx([3.0])

    def test_normalized_each_importance_counts_over_its_mean(self) -> None:
        measured = [statistic([400.0], mean=100.0), statistic([1.0])]
        actual = run("ota", [[3.0], [0.0]], measured, base=[0.0], density=1.0, normalize=True)
        assert actual == pytest.approx([2.0])

    def test_a_global_threshold_is_asked_of_the_caller(self) -> None:
        asked: list[tuple[int, float]] = []

        def threshold(index: int, density: float) -> float:
            asked.append((index, density))
            return 3.0

        actual = run("ota", [[5.0, 2.0]], [[1.0, 1.0]], base=[0.0, 0.0], density=0.3, threshold=threshold)
        assert actual == pytest.approx([5.0, 0.0])
        assert asked == [(0, 0.3)]
        with pytest.raises(NotBuiltError, match="scope: tensor"):
            run("ota", [[5.0]], [[1.0]], base=[0.0], density=0.3)

    def test_a_parameter_that_a_source_has_none_of_is_the_mean(self) -> None:
        actual = run("ota", [[1.0], [3.0]], [[3.0], None], base=[0.0], weight=[3.0, 1.0])
        assert actual == pytest.approx([1.5])
