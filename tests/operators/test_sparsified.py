"""TIES and DARE, against fixtures computed by hand and NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import NotBuiltError
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.masks import keep_mask, mask_key
from evomerge.operators.kernels.selection import stream_threshold

# Multiples of 1/8 and weights of 1/4: votes are exact in float32, so elections cannot differ by rounding.
stacks = hnp.arrays(np.int64, st.tuples(st.just(3), st.integers(1, 5), st.integers(1, 8)), elements=st.integers(-6, 6))
weights = st.lists(st.integers(-2, 6).map(lambda value: value / 4), min_size=3, max_size=3)
densities = st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]), min_size=3, max_size=3)


def run(
    method: str,
    tensors: Sequence[object],
    base: object = None,
    *,
    seed: int = 0,
    threshold: Callable[[int, float], float] | None = None,
    **params: float | bool | str | list[float],
) -> torch.Tensor:
    aliases = [f"s{index}" for index in range(len(tensors))]
    spec = get(method)
    used = {
        key: dict(zip(aliases, value, strict=True)) if isinstance(value, list) else value
        for key, value in params.items()
    }
    arrays = [torch.tensor(np.array(tensor, dtype=np.float32, order="C")) for tensor in tensors]
    origin = torch.zeros_like(arrays[0]) if base is None else torch.tensor(np.asarray(base, dtype=np.float32))
    context = Context(name="p", seed=seed, source_ids=tuple(aliases), threshold=threshold)
    return load(spec)(arrays, origin, spec.complete(used, aliases), context)


def ties_oracle(
    deltas: np.ndarray, weight: list[float], density: list[float], scope: str, *, mean: bool, zero_sign: str
) -> np.ndarray:
    """The definition, entry by entry, in float64."""
    trimmed = []
    for delta, share in zip(deltas, density, strict=True):
        groups = delta if scope == "row" else delta.reshape(1, -1)
        kept = np.zeros_like(groups)
        for row, group in enumerate(groups):
            limit = np.sort(np.abs(group))[::-1][max(1, int(share * group.size)) - 1]
            kept[row] = np.where(np.abs(group) >= limit, group, 0.0)
        trimmed.append(kept.reshape(delta.shape))
    out = np.zeros(deltas.shape[1:])
    for place in np.ndindex(*out.shape):
        votes = [w * t[place] for w, t in zip(weight, trimmed, strict=True)]
        sign = np.sign(sum(votes)) or {"zero": 0, "positive": 1, "negative": -1}[zero_sign]
        agree = [index for index, vote in enumerate(votes) if vote * sign > 0]
        total = sum(votes[index] for index in agree)
        out[place] = total / (sum(abs(weight[index]) for index in agree) or 1.0) if mean else total
    return out


class TestTies:
    def test_the_textbook_example(self) -> None:
        """By hand: trim keeps [4, 0, 2, 0] and [-3, 2, 2, 0]; the first entry elects + and drops -3."""
        result = run("ties", [[4.0, -1.0, 2.0, 0.0], [-3.0, 2.0, 2.0, 1.0]], density=0.5)
        assert result.tolist() == [4.0, 2.0, 2.0, 0.0]

    @pytest.mark.parametrize(
        ("zero_sign", "expected"),
        [("zero", [0, 0, 0, 0]), ("positive", [4, 0, 2, 3]), ("negative", [-4, 0, -2, -3])],
    )
    def test_opposite_experts_follow_the_zero_rule(self, zero_sign: str, expected: list[float]) -> None:
        """The published code elects -, mergekit +; here nobody wins unless asked."""
        pair = [[4.0, -1.0, 2.0, 3.0], [-4.0, 1.0, -2.0, -3.0]]
        assert run("ties", pair, density=0.75, zero_sign=zero_sign).tolist() == expected

    @settings(max_examples=150, deadline=None)
    @given(
        stack=stacks,
        weight=weights,
        density=densities,
        scope=st.sampled_from(["tensor", "row"]),
        mean=st.booleans(),
        zero_sign=st.sampled_from(["zero", "positive", "negative"]),
    )
    def test_equals_the_definition(
        self,
        stack: np.ndarray,
        weight: list[float],
        density: list[float],
        scope: str,
        mean: bool,
        zero_sign: str,
    ) -> None:
        deltas = stack / 8
        expected = ties_oracle(deltas, weight, density, scope, mean=mean, zero_sign=zero_sign)
        actual = run(
            "ties",
            list(deltas + 2.0),
            np.full(deltas.shape[1:], 2.0),
            weight=weight,
            density=density,
            scope=scope,
            normalize=mean,
            zero_sign=zero_sign,
        )
        assert np.allclose(actual.numpy() - 2.0, expected, rtol=1e-6, atol=1e-6)

    def test_large_tensors_equal_the_definition(self) -> None:
        """Beyond one span and beyond the size where selection changes its method."""
        rng = np.random.default_rng(0)
        deltas = rng.integers(-500, 501, (3, 620, 500)) / 64
        for scope in ("tensor", "row"):
            limits = [np.sort(np.abs(d), axis=None if scope == "tensor" else 1) for d in deltas]
            trimmed = [
                np.where(np.abs(d) >= (s[-62000] if scope == "tensor" else s[:, -100:-99]), d, 0)
                for d, s in zip(deltas, limits, strict=True)
            ]
            votes = np.stack(trimmed)
            agree = np.sign(votes) * np.sign(votes.sum(0)) > 0
            expected = (votes * agree).sum(0) / np.maximum(agree.sum(0), 1)
            actual = run("ties", list(deltas), density=0.2, scope=scope)
            assert np.allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)

    def test_identical_experts_give_the_trimmed_expert_however_many(self) -> None:
        for count in (1, 2, 5):
            result = run("ties", [[4.0, -1.0, 2.0, 0.5]] * count, density=0.5)
            assert result.tolist() == [4.0, 0.0, 2.0, 0.0]

    def test_without_trimming_and_conflict_it_is_the_mean(self) -> None:
        assert run("ties", [[1.0, -2.0], [3.0, -4.0]], density=1.0).tolist() == [2.0, -3.0]

    def test_a_zero_expert_is_ignored(self) -> None:
        """Its zeros neither vote nor count in the mean, even where trimming keeps them."""
        assert run("ties", [[4.0, -2.0], [0.0, 0.0]], density=1.0).tolist() == [4.0, -2.0]

    def test_equal_magnitudes_have_equal_fates(self) -> None:
        """A quarter of four equal entries: all stay."""
        assert run("ties", [[1.0, -1.0, 1.0, 1.0]], density=0.25).tolist() == [1.0, -1.0, 1.0, 1.0]

    def test_at_least_one_entry_survives(self) -> None:
        assert run("ties", [[1.0, 3.0, 2.0]], density=0.2).tolist() == [0.0, 3.0, 0.0]
        assert float(run("ties", [5.0], density=0.1)) == 5.0

    def test_weights_lean_the_election_and_the_mean(self) -> None:
        assert run("ties", [[4.0], [-3.0]], density=1.0, weight=[0.5, 1.0]).tolist() == [-3.0]
        assert run("ties", [[4.0], [1.0]], density=1.0, weight=[0.5, 1.5]).tolist() == [1.75]
        assert run("ties", [[4.0], [1.0]], density=1.0, weight=[0.5, 1.5], normalize=False).tolist() == [3.5]

    def test_the_mean_keeps_the_elected_sign_under_negative_weights(self) -> None:
        """|result| is at most the largest |τ_i|, however the weights cancel."""
        assert run("ties", [[2.0]], density=1.0, weight=[-1.0]).tolist() == [-2.0]
        result = run("ties", [[1.0], [-1.0]], density=1.0, weight=[1.0, -0.999])
        assert float(result) == pytest.approx(1.0)

    def test_rows_compete_within_themselves(self) -> None:
        tau = [[9.0, 8.0], [0.1, 0.2]]
        by_row = run("ties", [tau], density=0.5, scope="row")
        assert by_row.numpy() == pytest.approx(np.array([[9.0, 0.0], [0.0, 0.2]]))
        assert run("ties", [tau], density=0.5).tolist() == [[9.0, 8.0], [0.0, 0.0]]

    def test_a_global_threshold_equals_one_long_tensor(self) -> None:
        """Merging two parameters with the model's threshold is merging their concatenation."""
        rng = np.random.default_rng(1)
        first, second = rng.standard_normal((2, 50)), rng.standard_normal((2, 70)) * 3
        whole = np.concatenate([first, second], axis=1)
        expected = run("ties", list(whole), density=[0.2, 0.4])

        def threshold(source: int, density: float) -> float:
            parts = [torch.tensor(part[source], dtype=torch.float32) for part in (first, second)]
            return stream_threshold(lambda: parts, density)

        results = [
            run("ties", list(part), density=[0.2, 0.4], scope="global", threshold=threshold) for part in (first, second)
        ]
        assert torch.equal(torch.cat(results), expected)

    def test_a_global_scope_without_a_global_pass_is_refused(self) -> None:
        with pytest.raises(NotBuiltError, match="`scope: global` needs a pass over the whole model"):
            run("ties", [[1.0, 2.0]], scope="global")


class TestDare:
    tau = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)

    def mask(self, source: int, density: float, seed: int = 0) -> np.ndarray:
        return keep_mask(2000, mask_key(seed, "p", f"s{source}"), density).view(40, 50).numpy()

    def test_density_one_is_task_arithmetic(self) -> None:
        pair, base = [self.tau + 1, self.tau * 2], np.ones((40, 50))
        expected = run("task_arithmetic", pair, base, weight=[0.3, 0.8])
        for rescale in ("inv_keep", "l1", "none"):
            actual = run("dare_linear", pair, base, weight=[0.3, 0.8], density=1.0, rescale=rescale)
            assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("rescale", ["inv_keep", "l1", "none"])
    def test_linear_is_the_weighted_sum_of_dropped_task_vectors(self, rescale: str) -> None:
        weight, density = [0.5, -0.75], [0.3, 0.6]
        expected = np.zeros((40, 50))
        for index, tau in enumerate([self.tau, self.tau[::-1]]):
            exact = tau.astype(np.float64)
            kept = exact * self.mask(index, density[index])
            factor = {
                "inv_keep": 1 / density[index],
                "l1": np.abs(exact).sum() / np.abs(kept).sum(),
                "none": 1.0,
            }[rescale]
            expected += weight[index] * factor * kept
        actual = run("dare_linear", [self.tau, self.tau[::-1]], weight=weight, density=density, rescale=rescale)
        assert np.allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)

    def test_ties_elects_among_dropped_task_vectors(self) -> None:
        """On a grid, with a factor of 2: votes are exact."""
        rng = np.random.default_rng(2)
        deltas = rng.integers(-6, 7, (3, 40, 50)) / 8
        dropped = np.stack([delta * self.mask(index, 0.5) * 2 for index, delta in enumerate(deltas)])
        weight = [0.5, 1.0, 0.75]
        for mean in (False, True):
            expected = ties_oracle(dropped, weight, [1.0] * 3, "tensor", mean=mean, zero_sign="zero")
            actual = run("dare_ties", list(deltas), weight=weight, density=0.5, normalize=mean)
            assert np.allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-6)

    def test_the_l1_norm_is_matched_on_request(self) -> None:
        """To float32 rounding of the factor and the sum."""
        for density in (0.05, 0.5):
            result = run("dare_linear", [self.tau], density=density, rescale="l1")
            assert float(result.double().abs().sum()) == pytest.approx(
                np.abs(self.tau.astype(np.float64)).sum(), rel=1e-6
            )

    def test_inverse_keep_is_unbiased_with_the_bernoulli_variance(self) -> None:
        """E[τ'] = τ and Var[τ'] = τ²(1 - ρ)/ρ over 400 seeds, each within 5 standard errors."""
        density, seeds = 0.3, 400
        draws = np.stack([run("dare_linear", [self.tau], density=density, seed=s).numpy() for s in range(seeds)])
        ratio = draws.astype(np.float64) / self.tau
        size = ratio.size
        variance = (1 - density) / density
        assert abs(ratio.mean() - 1) < 5 * (variance / size) ** 0.5
        assert abs(ratio.var() / variance - 1) < 5 * (0.77 / size) ** 0.5

    def test_kept_entries_nest_in_the_density(self) -> None:
        support = [run("dare_linear", [self.tau], density=d).numpy() != 0 for d in (0.1, 0.4, 0.8)]
        assert not (support[0] & ~support[1]).any()
        assert not (support[1] & ~support[2]).any()
        assert support[0].sum() < support[1].sum() < support[2].sum()

    def test_sources_of_one_content_have_one_mask(self) -> None:
        """Identity decides, not the place in the list."""
        spec = get("dare_linear")
        tensor = torch.tensor(self.tau)
        pair = load(spec)(
            [tensor, tensor],
            torch.zeros_like(tensor),
            spec.complete({}, ["a", "b"]),
            Context(name="p", source_ids=("same", "same")),
        )
        single = load(spec)(
            [tensor],
            torch.zeros_like(tensor),
            spec.complete({"weight": 2.0}, ["a"]),
            Context(name="p", source_ids=("same",)),
        )
        assert torch.equal(pair, single)

    def test_a_density_that_keeps_nothing_gives_the_base(self) -> None:
        for method in ("dare_linear", "dare_ties"):
            result = run(method, [[1.0, 2.0]], density=1e-9, rescale="l1")
            assert result.tolist() == [0.0, 0.0]
