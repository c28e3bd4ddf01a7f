"""WUDI, SWUDI and OptMerge: the minimum of their losses, the flow towards it, and their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.operators.kernels.low_rank import LowRank
from tests.operators.spectra import Matrix, draw, low_rank, relative, run, svd

EXACT = 1e-5
END = 1e15
"""A time after which nothing moves."""
METHODS = ["wudi", "swudi", "optmerge"]
SHAPES = [(6, 30), (30, 6), (12, 20)]
"""Few rows (the rows of three sources do not span the inputs), few columns, and between."""


def problem(tasks: list[Matrix]) -> tuple[Matrix, Matrix]:
    gram = sum(task.T @ task / (task**2).sum() for task in tasks)
    return gram, sum(task @ task.T @ task / (task**2).sum() for task in tasks)


def closed(gram: Matrix, target: Matrix, start: Matrix) -> Matrix:
    inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
    return target @ inverse + start @ (np.eye(len(gram)) - gram @ inverse)


def descended(tasks: list[Matrix], start: Matrix, time: float, steps: int = 20000) -> Matrix:
    """Plain gradient descent on half of the loss, in small steps."""
    merged = start.copy()
    for _ in range(steps):
        gradient = sum((merged - task) @ task.T @ task / (task**2).sum() for task in tasks)
        merged -= time / steps * gradient
    return merged


def optmerge(tasks: list[Matrix], *, centre: bool, start: Matrix, share: float = 1.0) -> Matrix:
    rank = int(share * min(tasks[0].shape) / len(tasks))
    mean = sum(tasks) / len(tasks) if centre else np.zeros_like(tasks[0])
    gram, target = np.zeros((tasks[0].shape[1],) * 2), np.zeros_like(tasks[0])
    for task in tasks:
        u, values, vt = svd(task - mean)
        wanted = mean + u[:, :rank] * values[:rank] @ vt[:rank]
        _, values, vt = svd(task)
        projector = values[:rank, None] * vt[:rank]
        gram += projector.T @ projector / (task**2).sum()
        target += wanted @ projector.T @ projector / (task**2).sum()
    return closed(gram, target, start)


@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstNumpy:
    def test_wudi(self, shape: tuple[int, int]) -> None:
        tasks = draw(1, *shape)
        merged = run("wudi", tasks)
        assert relative(merged, closed(*problem(tasks), sum(tasks))) < EXACT
        gradient = sum((merged - task) @ task.T @ task / (task**2).sum() for task in tasks)
        assert np.abs(gradient).max() < 1e-5

    def test_weights_scale_the_task_vectors(self, shape: tuple[int, int]) -> None:
        tasks, weight = draw(2, *shape), [0.5, -1.0, 2.0]
        scaled = [value * task for value, task in zip(weight, tasks, strict=True)]
        for method in ("wudi", "swudi"):
            expected = 0.7 * run(method, scaled)
            assert relative(run(method, tasks, weight=weight, scale=0.7), expected) < EXACT

    @pytest.mark.parametrize("start", ["sum", "mean", "zero"])
    def test_swudi_is_the_gradient_flow(self, shape: tuple[int, int], start: str) -> None:
        tasks = draw(3, *shape)
        first = sum(tasks) * {"sum": 1.0, "mean": 1 / 3, "zero": 0.0}[start]
        expected = descended(tasks, first, 3.0)
        assert relative(run("swudi", tasks, time=3.0, start=start), expected) < 1e-3

    @pytest.mark.parametrize("centre", [True, False])
    @pytest.mark.parametrize("share", [1.0, 1.5])
    def test_optmerge(self, shape: tuple[int, int], centre: bool, share: float) -> None:
        tasks = draw(4, *shape)
        for start, first in (("sum", sum(tasks)), ("mean", sum(tasks) / 3), ("zero", 0 * tasks[0])):
            expected = optmerge(tasks, centre=centre, start=first, share=share)
            merged = run("optmerge", tasks, centre=centre, start=start, rank=share, time=END)
            assert relative(merged, expected) < EXACT


class TestByHand:
    def test_wudi(self) -> None:
        assert np.allclose(run("wudi", [np.diag([2.0, 0.0]), np.diag([1.0, 1.0])]), np.diag([5 / 3, 1.0]))


class TestInvariants:
    def test_swudi_goes_from_its_start_to_wudi(self) -> None:
        tasks = draw(5, 8, 10)
        assert relative(run("swudi", tasks, time=0.0), sum(tasks)) < 1e-6
        assert relative(run("swudi", tasks, time=1e9), run("wudi", tasks)) < EXACT
        ends = [relative(run("swudi", tasks, time=t), run("wudi", tasks)) for t in (0.0, 1.0, 10.0, 100.0, 1000.0)]
        assert ends == sorted(ends, reverse=True)

    def test_orthogonal_rows_leave_the_sum(self) -> None:
        tasks = [np.zeros((6, 12)) for _ in range(3)]
        for index, block in enumerate(draw(6, 6, 4)):
            tasks[index][:, 4 * index : 4 * index + 4] = block
        assert relative(run("wudi", tasks), sum(tasks)) < EXACT

    def test_independent_rows_of_low_rank_reach_a_loss_of_0(self) -> None:
        tasks = low_rank(7, 10, 20, 3)
        merged = run("wudi", tasks)
        assert max(np.abs((merged - task) @ task.T).max() / (task**2).sum() for task in tasks) < 1e-5
        assert relative(merged, sum(tasks)) > 0.1

    @pytest.mark.parametrize("method", ["swudi", "optmerge"])
    def test_time_keeps_the_merge_near(self, method: str) -> None:
        """What nearly equal rows are to give different outputs puts the exact minimum far away."""
        tasks = [np.zeros((4, 5)), np.zeros((4, 5))]
        tasks[0][0, 0] = tasks[1][1, 0] = 1.0
        tasks[1][1, 1] = 1e-3
        params = {"rank": 0.5, "centre": False} if method == "optmerge" else {}
        near, far = (np.linalg.norm(run(method, tasks, time=time, **params)) for time in (300.0, END))
        assert near < 2.0
        assert far > 500.0

    def test_optmerge_at_full_rank_without_centre_is_wudi(self) -> None:
        tasks = draw(8, 9, 7)
        assert relative(run("optmerge", tasks, rank=3.0, centre=False, time=END), run("wudi", tasks)) < EXACT

    def test_equal_sources_of_low_rank_give_that_source(self) -> None:
        task = low_rank(9, 9, 12, 3, count=1)[0]
        assert relative(run("optmerge", [task] * 3, start="mean"), task) < EXACT
        assert relative(run("wudi", [task] * 3), task) < EXACT
        assert relative(run("swudi", [task] * 3, start="mean", time=5.0), task) < EXACT


class TestEdges:
    @pytest.mark.parametrize("method", METHODS)
    def test_zero_task_vectors_give_the_base(self, method: str) -> None:
        base = draw(10, 5, 7, count=1)[0]
        assert np.array_equal(run(method, [np.zeros((5, 7))] * 2, base), base.astype(np.float32))

    def test_a_zero_task_vector_is_left_out(self) -> None:
        tasks = draw(11, 5, 7, count=2)
        for method in ("wudi", "swudi"):
            assert relative(run(method, [*tasks, np.zeros((5, 7))]), run(method, tasks)) < EXACT
        assert np.isfinite(run("optmerge", [*tasks, np.zeros((5, 7))])).all()

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("size", [1e-12, 1e-4, 1e8])
    def test_the_size_of_the_elements_does_not_matter(self, method: str, size: float) -> None:
        tasks = draw(12, 8, 10)
        assert relative(run(method, [size * task for task in tasks]), size * run(method, tasks)) < 1e-4

    @pytest.mark.parametrize("method", METHODS)
    def test_opposite_sources_are_finite(self, method: str) -> None:
        task = draw(13, 5, 7, count=1)[0]
        assert np.allclose(run(method, [task, -task]), 0.0, atol=1e-5)

    def test_what_is_no_matrix(self) -> None:
        tasks = draw(14, 7)
        for method in ("wudi", "swudi"):
            assert relative(run(method, tasks), sum(tasks) / 3) < EXACT
        assert not run("optmerge", tasks).any()

    @pytest.mark.parametrize("method", METHODS)
    def test_orientation_matters_and_is_known(self, method: str) -> None:
        tasks = draw(15, 8, 10)
        turned = [task.T for task in tasks]
        assert relative(run(method, turned, context={"inputs_first": True}).T, run(method, tasks)) < 1e-12
        assert relative(run(method, turned).T, run(method, tasks)) > 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [2, 4])
def test_factors_give_what_their_products_do(method: str, rank: int) -> None:
    rng = np.random.default_rng(16)
    updates = [
        LowRank(
            first=torch.from_numpy(rng.standard_normal((rank, 9))).float(),
            second=torch.from_numpy(rng.standard_normal((8, rank))).float(),
            scale=0.5,
        )
        for _ in range(3)
    ]
    tasks = [(0.5 * update.second.double() @ update.first.double()).numpy() for update in updates]
    assert relative(run(method, tasks, context={"low_rank": lambda index: updates[index]}), run(method, tasks)) < 1e-4
