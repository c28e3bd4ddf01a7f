"""OPCM and DOGE against NumPy in float64, and their edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from evomerge.errors import NotBuiltError
from tests.operators.spectra import Matrix, draw, relative, run, run_model, svd

EXACT = 1e-5


def opcm(model: Sequence[Sequence[Matrix]], share: float) -> list[Matrix]:
    """As defined: full SVDs, and at every step the running factor λ of all tensors."""
    merged, factor = [np.array(tasks[0]) for tasks in model], 1.0
    norms = [length(merged)]
    for step in range(1, len(model[0])):
        total = []
        for one, tasks in zip(merged, model, strict=True):
            task = tasks[step]
            if task.ndim == 2:
                u, values, vt = np.linalg.svd(one, full_matrices=True)
                over = np.flatnonzero(values.cumsum() / values.sum() > share)
                rank = int(over[0]) if len(over) else len(values)
                projected = u.T @ task @ vt.T
                np.fill_diagonal(projected, 0.0)
                projected[:rank, :rank] = 0.0
                task = u @ projected @ vt
            total.append(factor * one + task)
        norms.append(length([tasks[step] for tasks in model]))
        factor = length(total) / float(np.mean(norms))
        merged = [one / factor for one in total]
    return merged


def length(model: Sequence[Matrix]) -> float:
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in model))


def doge(tasks: list[Matrix], eta: float, density: float, steps: int, divisor: float = 6.0) -> Matrix:
    """Descent on δ itself, at the inverse of the largest curvature."""
    count, smaller = len(tasks), min(tasks[0].shape)
    stacked = np.concatenate([svd(task)[0][:, : smaller // count] for task in tasks], 1)
    known = svd(stacked)[0][:, : int(smaller / divisor)]
    lengths = [np.linalg.norm(task) for task in tasks]
    factors = [eta * np.mean(lengths) / length for length in lengths]
    total, all_ = sum(factors), np.stack(tasks)
    grams = np.einsum("jmn,imn->mij", all_, all_)
    curvature = total**2 * max(np.linalg.eigvalsh(gram)[-1] for gram in grams)
    shift = np.zeros_like(tasks[0])
    for _ in range(steps):
        merged = sum(factor * (task + shift) for factor, task in zip(factors, tasks, strict=True))
        errors = np.einsum("jmn,jmn->jm", all_, all_ - merged)
        gradient = -total * np.einsum("jm,jmn->mn", errors, all_)
        shift -= (gradient - known @ (known.T @ gradient)) / curvature
    result = np.zeros_like(shift)
    for factor, task in zip(factors, tasks, strict=True):
        limit = np.sort(np.abs(task).ravel())[-int(density * task.size)]
        result += factor * np.where(np.abs(task) >= limit, task + shift, 0.0)
    return result


class TestOpcm:
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
    def test_it_is_the_definition_with_full_svds(self, shape: tuple[int, int], share: float) -> None:
        tasks = draw(1, *shape)
        assert relative(run("opcm", tasks, share=share), opcm([tasks], share)[0]) < EXACT

    def test_by_hand(self) -> None:
        merged = run("opcm", [np.diag([3.0, 1.0]), [[1.0, 2.0], [0.0, 1.0]]])
        assert np.allclose(merged, [[2.2497, 1.4998], [0.0, 0.7499]], atol=1e-4)
        assert np.linalg.norm(merged) == pytest.approx((math.sqrt(10) + math.sqrt(6)) / 2)

    def test_its_length_is_the_mean_length(self) -> None:
        for tasks in (draw(2, 6, 9), draw(2, 40)):
            mean = np.mean([np.linalg.norm(task) for task in tasks])
            assert np.linalg.norm(run("opcm", tasks)) == pytest.approx(mean, rel=1e-5)

    def test_what_is_added_leaves_the_known_directions_alone(self) -> None:
        """In the first one's singular vectors, the merge has its singular values still, times one factor."""
        first, second = draw(3, 6, 9, count=2)
        u, values, vt = svd(first)
        inside = u.T @ run("opcm", [first, second], order=[0.0, 1.0]) @ vt.T
        factors = np.diag(inside) / values
        assert np.allclose(factors, factors[0], rtol=1e-4)
        closed = int(np.flatnonzero(values.cumsum() / values.sum() > 0.5)[0])
        assert np.allclose(inside[:closed, :closed], np.diag(np.diag(inside)[:closed]), atol=1e-5)
        assert np.abs(inside[closed:, :closed]).max() > 0.1

    def test_order_is_a_parameter(self) -> None:
        tasks = draw(4, 6, 9)
        turned = run("opcm", tasks, order=[0.9, 0.1, 0.5])
        assert relative(turned, opcm([[tasks[1], tasks[2], tasks[0]]], 0.5)[0]) < EXACT
        assert relative(turned, run("opcm", tasks)) > 0.01

    def test_weights_scale_the_task_vectors(self) -> None:
        tasks, weight = draw(5, 6, 9), [0.5, -1.0, 2.0]
        scaled = [value * task for value, task in zip(weight, tasks, strict=True)]
        assert relative(run("opcm", tasks, weight=weight), opcm([scaled], 0.5)[0]) < EXACT

    @pytest.mark.parametrize("weight", [[1.0, 1.0, 1.0], [0.5, -2.0, 1.0]])
    def test_lengths_of_the_whole_model(self, weight: list[float]) -> None:
        """One factor for two matrices and a vector, whose lengths differ by far."""
        model = [draw(20, 6, 9), [10.0 * task for task in draw(21, 8, 5)], draw(22, 7)]
        scaled = [[size * task for size, task in zip(weight, tasks, strict=True)] for tasks in model]
        told = {f"s{index}": value for index, value in enumerate(weight)}
        merged = run_model("opcm", model, scope="global", weight=told)
        for actual, expected in zip(merged, opcm(scaled, 0.5), strict=True):
            assert relative(actual, expected) < EXACT
        assert relative(merged[2], run("opcm", model[2], weight=weight)) > 0.01

    def test_the_whole_model_is_needed(self) -> None:
        with pytest.raises(NotBuiltError, match="`scope: global` needs a pass over the whole model"):
            run("opcm", draw(23, 3, 4), scope="global")

    def test_edges(self) -> None:
        task, other, zero = *draw(6, 5, 7, count=2), np.zeros((5, 7))
        assert not run("opcm", [zero, zero]).any()
        assert relative(run("opcm", [zero, task]), task / 2) < EXACT
        assert np.isfinite(run("opcm", [task, zero, other])).all()
        assert relative(run("opcm", [task, -task]), task) < EXACT
        assert not run("opcm", [task[0], -task[0]]).any()
        base = other * 1e3
        assert np.array_equal(run("opcm", [task, other], base, weight=0.0), base.astype(np.float32))


class TestDoge:
    @pytest.mark.parametrize("shape", [(12, 15), (15, 12)])
    @pytest.mark.parametrize(("density", "steps"), [(1.0, 0), (0.3, 0), (0.3, 30)])
    def test_it_is_projected_gradient_descent(self, shape: tuple[int, int], density: float, steps: int) -> None:
        tasks = [size * task for size, task in zip((1.0, 2.0, 0.5), draw(7, *shape), strict=True)]
        expected = doge(tasks, 0.3, density, steps)
        assert relative(run("doge", tasks, density=density, steps=steps), expected) < 1e-4

    def test_without_shift_and_mask_all_have_one_length(self) -> None:
        tasks = [size * task for size, task in zip((1.0, 4.0), draw(8, 6, 9, count=2), strict=True)]
        lengths = [np.linalg.norm(task) for task in tasks]
        expected = sum(0.2 * np.mean(lengths) / length * task for task, length in zip(tasks, lengths, strict=True))
        assert relative(run("doge", tasks, weight=0.2, density=1.0, steps=0), expected) < EXACT

    def test_the_shift_is_orthogonal_to_the_common_directions(self) -> None:
        tasks = draw(9, 12, 15)
        shift = run("doge", tasks, density=1.0, steps=50) - run("doge", tasks, density=1.0, steps=0)
        known = svd(np.concatenate([svd(task)[0][:, :4] for task in tasks], 1))[0][:, :2]
        assert np.linalg.norm(shift) > 0.1
        assert np.abs(known.T @ shift).max() < 1e-5

    def test_more_steps_lower_the_conflict(self) -> None:
        tasks = draw(10, 12, 15)

        def conflict(merged: Matrix) -> float:
            return sum(float((np.sum(task * (task - merged), 1) ** 2).sum()) for task in tasks)

        found = [conflict(run("doge", tasks, density=1.0, steps=steps)) for steps in (0, 1, 10, 100)]
        assert found == sorted(found, reverse=True)
        assert found[-1] < 0.9 * found[0]

    @pytest.mark.parametrize("size", [1e-10, 1e6])
    def test_it_scales(self, size: float) -> None:
        tasks = draw(11, 12, 15)
        assert relative(run("doge", [size * task for task in tasks]), size * run("doge", tasks)) < 1e-4

    def test_a_global_mask_asks_for_its_threshold(self) -> None:
        tasks = draw(12, 6, 9)
        told = {"threshold": lambda index, density: [1.0, 9.0, 0.5][index]}
        merged = run("doge", tasks, steps=0, scope="global", context=told)
        lengths = [np.linalg.norm(task) for task in tasks]
        parts = zip(tasks, lengths, (1.0, 9.0, 0.5), strict=True)
        expected = sum(0.3 * np.mean(lengths) / n * np.where(np.abs(task) >= t, task, 0) for task, n, t in parts)
        assert relative(merged, expected) < EXACT
        with pytest.raises(NotBuiltError, match="`scope: global` needs a pass over the whole model"):
            run("doge", tasks, scope="global")

    def test_edges(self) -> None:
        task, base, zero = *draw(13, 5, 7, count=2), np.zeros((5, 7))
        assert np.array_equal(run("doge", [zero, zero], base), base.astype(np.float32))
        assert np.isfinite(run("doge", [task, zero])).all()
        assert np.isfinite(run("doge", [task, -task])).all()
        assert not run("doge", [task[0], base[0]]).any()
        assert relative(run("doge", [task[0]], others="mean"), 0.3 * task[0]) < EXACT
