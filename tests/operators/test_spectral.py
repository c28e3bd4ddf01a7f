"""TSV-M, Iso-C, Iso-CTS, STAR and KnOTS against NumPy's SVD in float64, and their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.low_rank import LowRank
from evomerge.operators.kernels.masks import keep_mask, mask_key
from tests.operators.spectra import Matrix, draw, low_rank, relative, run, svd

EXACT = 1e-5
METHODS = ["tsv_m", "tsv_outlier", "iso_c", "iso_cts", "star", "knots", "knots_dare"]
SHAPES = [(12, 20), (20, 12), (15, 15)]


def tsv(tasks: list[Matrix], share: float = 1.0) -> Matrix:
    rank = int(share * min(tasks[0].shape) / len(tasks))
    parts = [svd(task) for task in tasks]
    left = np.concatenate([u[:, :rank] for u, _, _ in parts], 1)
    right = np.concatenate([vt[:rank] for _, _, vt in parts]).T
    values = np.concatenate([values[:rank] for _, values, _ in parts])
    polar = [u @ vt for u, _, vt in (svd(left), svd(right))]
    return polar[0] * values @ polar[1].T


def isotropic(tasks: list[Matrix]) -> Matrix:
    u, values, vt = svd(sum(tasks))
    return values.mean() * u @ vt


def isotropic_with_tasks(tasks: list[Matrix], common: float) -> Matrix:
    smaller, count = min(tasks[0].shape), len(tasks)
    each = round((smaller - int(smaller * common)) / count)
    shared = smaller - each * count
    u, values, vt = (part for part in svd(sum(tasks)))
    lefts, rights, kept = [u[:, :shared]], [vt[:shared].T], [values[:shared]]
    for task in tasks:
        own = svd(task - u[:, :shared] @ u[:, :shared].T @ task)
        lefts.append(own[0][:, :each])
        rights.append(own[2][:each].T)
        kept.append(own[1][:each])
    polar = [u @ vt for u, _, vt in (svd(np.concatenate(lefts, 1)), svd(np.concatenate(rights, 1)))]
    return np.concatenate(kept).mean() * polar[0] @ polar[1].T


def star(tasks: list[Matrix], eta: float) -> Matrix:
    total = np.zeros_like(tasks[0])
    for task in tasks:
        u, values, vt = svd(task)
        rank = next(k for k in range(1, len(values) + 1) if values[:k].sum() >= eta * values.sum())
        total += u[:, :rank] * (values[:rank] * values.sum() / values[:rank].sum()) @ vt[:rank]
    return total / len(tasks)


def knots(tasks: list[Matrix], density: float) -> Matrix:
    """The mean of the entries that agree with the sign of the trimmed sum."""
    u, values, vt = svd(np.concatenate(tasks, 1))
    rank = int((values > 1e-9 * values[0]).sum())
    width = tasks[0].shape[1]
    own = [values[:rank, None] * vt[:rank, i * width : (i + 1) * width] for i in range(len(tasks))]
    trimmed = []
    for part in own:
        limit = np.sort(np.abs(part).ravel())[-max(1, int(density * part.size))]
        trimmed.append(np.where(np.abs(part) >= limit, part, 0.0))
    sign = np.sign(sum(trimmed))
    agree = [np.where(part * sign > 0, part, 0.0) for part in trimmed]
    count = sum((part != 0).astype(float) for part in agree)
    return u[:, :rank] @ (sum(agree) / np.maximum(count, 1))


@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstNumpy:
    @pytest.mark.parametrize("share", [1.0, 0.5, 2.0])
    def test_tsv_m(self, shape: tuple[int, int], share: float) -> None:
        tasks = draw(1, *shape)
        assert relative(run("tsv_m", tasks, rank=share), tsv(tasks, share)) < EXACT

    def test_iso_c(self, shape: tuple[int, int]) -> None:
        tasks = draw(2, *shape)
        assert relative(run("iso_c", tasks, scale=1.5), 1.5 * isotropic(tasks)) < EXACT
        weighted = [0.5 * tasks[0], tasks[1], -tasks[2]]
        assert relative(run("iso_c", tasks, weight=[0.5, 1.0, -1.0]), isotropic(weighted)) < EXACT

    @pytest.mark.parametrize("common", [0.8, 0.5, 0.0])
    def test_iso_cts(self, shape: tuple[int, int], common: float) -> None:
        tasks = draw(3, *shape)
        assert relative(run("iso_cts", tasks, common=common), isotropic_with_tasks(tasks, common)) < EXACT

    @pytest.mark.parametrize("eta", [0.2, 0.4, 0.8])
    def test_star(self, shape: tuple[int, int], eta: float) -> None:
        tasks = draw(4, *shape)
        assert relative(run("star", tasks, eta=eta), star(tasks, eta)) < EXACT

    @pytest.mark.parametrize("density", [1.0, 0.3])
    def test_knots(self, shape: tuple[int, int], density: float) -> None:
        tasks = draw(5, *shape)
        assert relative(run("knots", tasks, density=density), knots(tasks, density)) < EXACT

    @pytest.mark.parametrize("rescale", ["inv_keep", "l1", "none"])
    def test_knots_dare(self, shape: tuple[int, int], rescale: str) -> None:
        """The drawn mask is taken as given; all else is by definition."""
        tasks, density = draw(24, *shape), [0.3, 0.6, 1.0]
        u = svd(np.concatenate(tasks, 1))[0]
        thinned = []
        for index, (task, share) in enumerate(zip(tasks, density, strict=True)):
            own = u.T @ task
            mask = keep_mask(own.size, mask_key(0, "p", f"s{index}"), share).numpy().reshape(own.shape)
            ratio = {"inv_keep": 1 / share, "l1": np.abs(own).sum() / np.abs(own * mask).sum(), "none": 1.0}[rescale]
            thinned.append(own * mask * ratio)
        params = {"density": density, "rescale": rescale}
        summed = run("knots_dare", tasks, inner="linear", normalize=False, scale=0.7, **params)
        assert relative(summed, 0.7 * u @ sum(thinned)) < EXACT
        sign = np.sign(sum(thinned))
        agree = [np.where(part * sign > 0, part, 0.0) for part in thinned]
        count = sum((part != 0).astype(float) for part in agree)
        assert relative(run("knots_dare", tasks, **params), u @ (sum(agree) / np.maximum(count, 1))) < EXACT

    def test_weights_and_scale(self, shape: tuple[int, int]) -> None:
        tasks, weight = draw(6, *shape), [0.5, -1.0, 2.0]
        scaled = [value * task for value, task in zip(weight, tasks, strict=True)]
        assert relative(run("tsv_m", tasks, weight=weight, scale=0.7), 0.7 * tsv(scaled)) < EXACT
        assert relative(run("star", tasks, weight=weight, scale=0.7), 0.7 * star(scaled, 0.4)) < EXACT


class TestByHand:
    def test_tsv_m_of_orthogonal_sources_is_their_sum(self) -> None:
        assert np.allclose(run("tsv_m", [np.diag([3.0, 0.0]), np.diag([0.0, 2.0])]), np.diag([3.0, 2.0]))

    def test_iso_c(self) -> None:
        assert np.allclose(run("iso_c", [np.diag([3.0, 1.0]), np.diag([1.0, 1.0])]), 3 * np.eye(2))

    def test_star(self) -> None:
        assert np.allclose(run("star", [np.diag([3.0, 1.0])]), np.diag([4.0, 0.0]))

    def test_outliers_weigh_by_their_mass(self) -> None:
        """One source has an outlier of 9, the other one of 3: ω is 9 and 3, so c is 3/2 and 1/2."""
        first, second = np.zeros((2, 40)), np.zeros((2, 40))
        first[0, 0], second[1, 1] = 9.0, 3.0
        expected = 1.5 * first + 0.5 * second
        assert np.allclose(run("tsv_outlier", [first, second], kappa=2.0), expected, atol=1e-5)
        level = [np.ones((2, 4)) * [[1], [0]], np.ones((2, 4)) * [[0], [2]]]
        assert np.allclose(run("tsv_outlier", level, kappa=2.0), run("tsv_m", level), atol=1e-6)


class TestInvariants:
    def test_singular_values_of_iso_c_are_equal_and_keep_their_sum(self) -> None:
        tasks = draw(7, 10, 14)
        values, whole = svd(run("iso_c", tasks))[1], svd(sum(tasks))[1]
        assert np.allclose(values, whole.mean(), rtol=1e-5)
        assert np.linalg.norm(values) <= np.linalg.norm(whole)

    def test_common_share_1_of_iso_cts_is_iso_c(self) -> None:
        tasks = draw(8, 9, 7)
        assert relative(run("iso_cts", tasks, common=1.0), run("iso_c", tasks)) < EXACT

    def test_star_keeps_nuclear_norms_and_at_1_is_the_mean(self) -> None:
        tasks = draw(9, 9, 7)
        assert math.isclose(svd(run("star", tasks[:1]))[1].sum(), svd(tasks[0])[1].sum(), rel_tol=1e-5)
        assert relative(run("star", tasks, eta=1.0), sum(tasks) / 3) < EXACT

    def test_linear_knots_is_task_arithmetic(self) -> None:
        tasks, base = draw(10, 9, 7), draw(11, 9, 7, count=1)[0]
        ours = run("knots", tasks, base, inner="linear", weight=[0.5, 0.2, -1.0], scale=0.5, normalize=False)
        theirs = run("task_arithmetic", tasks, base, weight=[0.5, 0.2, -1.0], scale=0.5)
        assert np.array_equal(ours, theirs)

    def test_knots_dare_that_drops_nothing_is_knots(self) -> None:
        tasks = draw(25, 9, 7)
        assert np.array_equal(run("knots_dare", tasks, density=1.0), run("knots", tasks, density=1.0))
        linear = run("knots_dare", tasks, density=1.0, inner="linear", weight=[0.5, 0.2, -1.0], normalize=False)
        assert relative(linear, run("task_arithmetic", tasks, weight=[0.5, 0.2, -1.0])) < EXACT

    def test_tsv_m_keeps_the_energy_of_what_it_kept(self) -> None:
        tasks = draw(12, 12, 20)
        kept = sum(float((svd(task)[1][:4] ** 2).sum()) for task in tasks)
        assert svd(run("tsv_m", tasks))[1].shape == (12,)
        assert np.linalg.norm(run("tsv_m", tasks)) ** 2 == pytest.approx(kept, rel=1e-5)

    @settings(max_examples=25, deadline=None)
    @given(
        method=st.sampled_from(METHODS),
        seed=st.integers(0, 1000),
        size=st.integers(-20, 12),
        rank=st.integers(1, 5),
    )
    def test_any_size_and_rank_scales(self, method: str, seed: int, size: int, rank: int) -> None:
        tasks = low_rank(seed, 6, 5, rank)
        expected = run(method, tasks)
        assert np.isfinite(expected).all()
        assert np.allclose(run(method, [task * 2.0**size for task in tasks]), expected * 2.0**size, rtol=1e-4, atol=0)


class TestEdges:
    def test_equal_sources_give_tsv_m_the_truncated_one(self) -> None:
        task = draw(13, 10, 12, count=1)[0]
        u, values, vt = svd(task)
        assert relative(run("tsv_m", [task, task]), u[:, :5] * values[:5] @ vt[:5]) < EXACT

    def test_low_rank_sources_gain_no_null_directions(self) -> None:
        """Of sources whose rows and columns do not overlap, TSV-M is the sum, and Iso-C spreads over their rank."""
        tasks = [np.zeros((20, 24)) for _ in range(3)]
        for index, block in enumerate(low_rank(14, 5, 6, 2)):
            tasks[index][5 * index : 5 * index + 5, 6 * index : 6 * index + 6] = block
        assert relative(run("tsv_m", tasks), sum(tasks)) < EXACT
        for method in ("iso_c", "iso_cts"):
            values = svd(run(method, tasks))[1]
            assert int((values > 1e-4 * values[0]).sum()) == 6, method
        assert svd(run("iso_c", tasks))[1].sum() == pytest.approx(svd(sum(tasks))[1].sum(), rel=1e-5)

    @pytest.mark.parametrize("method", METHODS)
    def test_zero_task_vectors_give_the_base(self, method: str) -> None:
        base = draw(15, 5, 7, count=1)[0]
        assert np.array_equal(run(method, [np.zeros((5, 7))] * 2, base), base.astype(np.float32))

    @pytest.mark.parametrize("method", METHODS)
    def test_a_zero_task_vector_beside_others_is_finite(self, method: str) -> None:
        tasks = [*draw(16, 5, 7, count=2), np.zeros((5, 7))]
        assert np.isfinite(run(method, tasks)).all()

    def test_opposite_sources_cancel(self) -> None:
        task = draw(17, 5, 7, count=1)[0]
        for method in ("iso_c", "star", "tsv_m", "knots"):
            assert np.allclose(run(method, [task, -task]), 0.0, atol=1e-5), method

    @pytest.mark.parametrize("method", METHODS)
    def test_scale_0_and_weight_0_give_the_base_bit_by_bit(self, method: str) -> None:
        base, tasks = draw(18, 5, 7, count=1)[0] * 1e3, draw(19, 5, 7)
        expected = base.astype(np.float32)
        for params in ({"scale": 0.0}, {"weight": 0.0}):
            assert np.array_equal(run(method, tasks, base, **params), expected)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_source_of_weight_0_is_no_source(self, method: str) -> None:
        tasks = draw(20, 6, 7)
        assert np.array_equal(run(method, tasks, weight=[1.0, 0.5, 0.0]), run(method, tasks[:2], weight=[1.0, 0.5]))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("context", [{"is_vocabulary": True}, {}])
    def test_what_is_no_matrix_is_averaged_or_kept(self, method: str, context: dict[str, bool]) -> None:
        tasks = draw(21, 6, 7) if context else draw(21, 7)
        mean = (tasks[0] + 0.5 * tasks[1] - tasks[2]) / 3
        params = {"weight": [1.0, 0.5, -1.0], "scale": 0.5}
        assert relative(run(method, tasks, context=context, **params), 0.5 * mean) < EXACT
        assert not run(method, tasks, context=context, others="base", **params).any()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_read_as_it_is(self, method: str, dtype: torch.dtype) -> None:
        stored = [torch.from_numpy(task).to(dtype) for task in draw(22, 6, 7)]
        spec, aliases = get(method), ("a", "b")
        kernel, params = load(spec), spec.complete({}, aliases)
        own = kernel(stored[1:], stored[0], params, Context(name="p", source_ids=aliases))
        wide = [tensor.float() for tensor in stored]
        assert torch.equal(own, kernel(wide[1:], wide[0], params, Context(name="p", source_ids=aliases)))
        rounded = kernel(stored[1:], stored[0], params, Context(name="p", source_ids=aliases, dtype=dtype))
        assert torch.equal(rounded, own.to(dtype))

    @pytest.mark.parametrize("method", METHODS)
    def test_a_matrix_stored_inputs_first_is_read_so(self, method: str) -> None:
        tasks = draw(23, 6, 9)
        turned = run(method, [task.T for task in tasks], context={"inputs_first": True})
        assert relative(turned.T, run(method, tasks)) < 1e-12


class TestFactors:
    """Adapters give their factors: the result is that of the dense product, without its rounding."""

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("transposed", [False, True])
    def test_they_give_what_the_products_do(self, method: str, transposed: bool) -> None:
        rng = np.random.default_rng(24)
        updates = [
            LowRank(
                first=torch.from_numpy(rng.standard_normal((2, 9))).float(),
                second=torch.from_numpy(rng.standard_normal((8, 2))).float(),
                scale=0.5,
                transposed=transposed,
            )
            for _ in range(3)
        ]
        tasks = [
            (0.5 * u.second.double() @ u.first.double()).numpy()
            if not transposed
            else (0.5 * u.second.double() @ u.first.double()).numpy().T
            for u in updates
        ]
        told = {"low_rank": lambda index: updates[index], "inputs_first": transposed}
        dense = run(method, tasks, context={"inputs_first": transposed})
        assert relative(run(method, tasks, context=told), dense) < 1e-4

    def test_rounding_of_an_adapted_weight_adds_no_directions(self) -> None:
        """Float32 rounding of W + BA gives the difference full rank; Iso-C must not spread energy over it."""
        rng = np.random.default_rng(25)
        base = rng.standard_normal((40, 50)).astype(np.float32)
        update = 1e-3 * rng.standard_normal((40, 2)) @ rng.standard_normal((2, 50))
        tuned = torch.from_numpy(base + update.astype(np.float32))
        params = get("iso_c").complete({}, ("a",))
        merged = load(get("iso_c"))([tuned], torch.from_numpy(base), params, Context(name="p", source_ids=("a",)))
        values = svd(merged.double().numpy() - base)[1]
        assert int((values > 1e-2 * values[0]).sum()) == 2


class TestKept:
    @pytest.mark.parametrize("method", [*METHODS, "wudi", "swudi", "optmerge", "doge"])
    def test_a_second_merge_with_other_coefficients_decomposes_nothing(
        self, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store: dict[str, tuple[torch.Tensor, ...]] = {}

        def kept(what: str, make: object) -> tuple[torch.Tensor, ...]:
            if what not in store:
                store[what] = make()  # type: ignore[operator]
            return store[what]

        files = {"kept": kept, "filed": kept}
        tasks = draw(26, 6, 9)
        weight = 0.4 if method.startswith("iso") else [0.4, 0.7, 0.2]
        scale = {} if method == "doge" else {"scale": 0.3}
        expected = run(method, tasks, weight=weight, **scale)
        run(method, tasks, context=files)
        for name in ("eigh", "svd", "qr"):
            monkeypatch.setattr(torch.linalg, name, None)
        again = run(method, tasks, context=files, weight=weight, **scale)
        assert np.array_equal(again, expected)
