"""The contract of a merge method: subclass it, give a `case`, and every law that the method declares is run.

::

    class TestMyMethod(OperatorContract):
        @pytest.fixture
        def case(self):
            return OperatorCase(MY_SPEC)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.errors import EvomergeError
from evomerge.operators import load
from evomerge.operators.kernels.context import Context, Statistic, alone
from evomerge.operators.kernels.importance import graft_score
from evomerge.operators.kernels.selection import stream_threshold
from evomerge.operators.metadata import Invariant, OperatorSpec, Scalar, Setting, StatisticKind

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (3, 5), (2, 3, 4), (0,), (4, 0))
"""Shapes that every kernel takes, a scalar and empty ones among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCase:
    """A method under some settings."""

    spec: OperatorSpec
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """Parameters that differ from their defaults."""
    lacks: tuple[Invariant, ...] = ()
    """Laws declared by the method that do not hold under these settings."""

    def obeys(self, invariant: Invariant) -> bool:
        """Tell whether a law is declared for this case."""
        return invariant in self.spec.invariants and invariant not in self.lacks

    @property
    def count(self) -> int:
        """How many sources the checks blend."""
        return max(self.spec.min_sources, min(3, self.spec.max_sources or 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Inputs on a grid of 1/64: differences, sums and products by powers of 2 are exact in float32."""

    base: Tensor
    tensors: tuple[Tensor, ...]


def draw(shape: Sequence[int], count: int, seed: int = 0) -> Sample:
    """Return a base and `count` sources; their differences hold zeros, equal magnitudes and both signs."""
    rng = np.random.default_rng([seed, count, *shape])
    base = _grid(rng.integers(-256, 257, size=tuple(shape)))
    deltas = [_grid(rng.integers(-128, 129, size=tuple(shape))) for _ in range(count)]
    zeros = [torch.from_numpy(np.asarray(rng.random(tuple(shape)) < 0.1)) for _ in range(count)]
    deltas = [delta.masked_fill(zero, 0.0) for delta, zero in zip(deltas, zeros, strict=True)]
    return Sample(base=base, tensors=tuple(base + delta for delta in deltas))


def _grid(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32)) / 64


def varied(case: OperatorCase, aliases: Sequence[str], seed: int = 0) -> dict[str, Setting]:
    """Return settings with a value from the range of every searched parameter, one a source if allowed."""
    rng = np.random.default_rng([seed, len(aliases)])
    settings: dict[str, Setting] = {}
    for parameter in case.spec.parameters:
        if parameter.search is None:
            continue
        values: list[Scalar] = [float(rng.uniform(*parameter.search)) for _ in aliases]
        if parameter.kind == "int":
            values = [int(rng.integers(int(parameter.search[0]), int(parameter.search[1]) + 1)) for _ in aliases]
        settings[parameter.name] = dict(zip(aliases, values, strict=True)) if parameter.per_source else values[0]
    return {**settings, **case.settings}


def blend(
    case: OperatorCase,
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    settings: Mapping[str, Setting] | None = None,
    aliases: Sequence[str] = "abc",
    **known: Any,
) -> Tensor:
    """Complete the settings and call the kernel, with made-up statistics where it needs any.

    `known` are fields of the `Context` that it gets.
    """
    used = list(aliases)[: len(tensors)]
    params = case.spec.complete(case.settings if settings is None else settings, used)

    def statistic(index: int, kind: StatisticKind) -> Statistic | None:
        return draw_statistic(kind, tensors[0].shape, used[index])

    def threshold(index: int, density: float) -> float:
        delta = tensors[index].float() - base.float()
        if (found := [statistic(index, kind) for kind in case.spec.statistics(params) if kind != "gram"]) and found[0]:
            delta = graft_score(delta, found[0].tensor)
        return stream_threshold(lambda: [delta], density)

    root = base if case.spec.base == "required" else None
    context = Context(
        source_ids=tuple(used),
        threshold=threshold,
        statistic=statistic if case.spec.needs else None,
        **{"name": "layer.weight", **known},
    )
    context = replace(context, of_model=alone(tensors, root, context))
    return load(case.spec)(tensors, root, params, context)


def draw_statistic(kind: StatisticKind, shape: Sequence[int], alias: str) -> Statistic | None:
    """Return a statistic of a parameter: the Gram matrix of random inputs (None: no matrix), or positive numbers.

    These are the same in every row, so that a part of the parameter has a part of them.
    """
    rng = np.random.default_rng([ord(alias), *shape[1:]])
    if kind != "gram":
        values = _grid(rng.integers(1, 257, size=tuple(shape[1:]))).expand(tuple(shape))
        return Statistic(tensor=values, mean=2.0, median=2.0, norm=1.0 + ord(alias) % 7)
    if len(shape) != 2:
        return None
    inputs = rng.standard_normal((3 * shape[1], shape[1]))
    return Statistic(tensor=torch.from_numpy(inputs.T @ inputs / max(1, len(inputs))).float())


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same(actual: Tensor, expected: Tensor, message: str) -> None:
    _require(torch.equal(actual, expected), f"{message}: {actual} is not {expected}")


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


class OperatorContract:
    """Every law of a merge method; a subclass gives the fixture `case`."""

    def test_result_is_finite_float32_of_the_inputs_shape(self, case: OperatorCase) -> None:
        """Scalars, vectors, matrices, more dimensions and empty tensors are all blended."""
        for shape in SHAPES:
            sample = draw(shape, case.count)
            result = blend(case, sample.tensors, sample.base)
            _require(result.dtype == torch.float32, f"dtype {result.dtype}")
            _require(result.shape == torch.Size(shape), f"shape {tuple(result.shape)} for {shape}")
            _require(bool(torch.isfinite(result).all()), f"not finite for shape {shape}")

    def test_inputs_are_neither_changed_nor_returned(self, case: OperatorCase) -> None:
        """Sources are memory-mapped files: a kernel may not write to them."""
        sample = draw((3, 5), case.count)
        inputs = (sample.base, *sample.tensors)
        before = [tensor.clone() for tensor in inputs]
        result = blend(case, sample.tensors, sample.base)
        result.fill_(7.0)
        for tensor, copy in zip(inputs, before, strict=True):
            _same(tensor, copy, "an input was changed, or is the result")

    def test_strides_do_not_matter(self, case: OperatorCase) -> None:
        """A transposed view gives the same bits as its contiguous copy."""
        sample = draw((6, 10), case.count)
        strided = [tensor.t() for tensor in sample.tensors]
        expected = blend(case, [tensor.contiguous() for tensor in strided], sample.base.t().contiguous())
        _same(blend(case, strided, sample.base.t()), expected, "strides changed the result")

    def test_stored_dtypes_are_read_exactly_and_the_result_is_rounded_once(self, case: OperatorCase) -> None:
        """bfloat16 inputs blend as their float32 values do, and a bfloat16 result is the float32 one, rounded."""
        sample = draw((30, 40), case.count)
        tensors, base = [tensor.bfloat16() for tensor in sample.tensors], sample.base.bfloat16()
        expected = blend(case, [tensor.float() for tensor in tensors], base.float())
        _same(blend(case, tensors, base), expected, "inputs are not computed with in float32")
        rounded = blend(case, tensors, base, dtype=torch.bfloat16)
        _require(rounded.dtype == torch.bfloat16, f"dtype {rounded.dtype}, not bfloat16")
        _same(rounded, expected.bfloat16(), "the result is not the float32 one, rounded once")

    def test_the_memory_of_a_result_is_only_written_to(self, case: OperatorCase) -> None:
        """What a kernel asks for has the result's size, and what was in it does not matter."""

        def soiled(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
            _require(length == sample.base.numel(), f"memory for {length} elements")
            return torch.full((length,), math.nan, dtype=dtype, device=device)

        sample = draw((30, 40), case.count)
        expected = blend(case, sample.tensors, sample.base)
        _same(blend(case, sample.tensors, sample.base, empty=soiled), expected, "what was in the memory shows")

    def test_repeats_bit_for_bit(self, case: OperatorCase) -> None:
        """The same call gives the same bits, whatever the state of torch's own generator."""
        sample = draw((40, 50), case.count)
        first = blend(case, sample.tensors, sample.base)
        torch.rand(3)
        _same(blend(case, sample.tensors, sample.base), first, "a second call differs")

    def test_only_random_methods_depend_on_seed_and_name(self, case: OperatorCase) -> None:
        """A seed or parameter name changes masks, and nothing where there are none."""
        sample = draw((40, 50), case.count)
        first = blend(case, sample.tensors, sample.base)
        for other in (
            blend(case, sample.tensors, sample.base, seed=1),
            blend(case, sample.tensors, sample.base, name="other.weight"),
        ):
            _require(torch.equal(first, other) != case.spec.random, "`random` is declared wrongly")

    def test_idempotent(self, case: OperatorCase) -> None:
        """Where every source equals the base there is nothing to blend."""
        if not case.obeys("idempotent"):
            return
        sample = draw((3, 5), case.count)
        _close(blend(case, [sample.base.clone() for _ in sample.tensors], sample.base), sample.base)

    def test_different_shapes_are_refused(self, case: OperatorCase) -> None:
        """Aligning shapes is the planner's work."""
        sample = draw((3, 5), case.count)
        wrong = [*sample.tensors[:-1], sample.tensors[-1][:, :4]]
        try:
            blend(case, wrong, sample.base if case.count == 1 else sample.base[:, :4])
        except EvomergeError:
            return
        raise AssertionError("tensors of different shapes were blended")

    def test_a_part_depends_on_its_region_alone(self, case: OperatorCase) -> None:
        """A method of scope element or row gives the same for a part as it gives there for the whole."""
        if case.spec.scope not in ("element", "row"):
            return
        sample = draw((9, 10), case.count)
        part = blend(case, [tensor[2:5] for tensor in sample.tensors], sample.base[2:5])
        _same(part, blend(case, sample.tensors, sample.base)[2:5], "`scope` is declared too narrow")

    def test_permutation(self, case: OperatorCase) -> None:
        """Sources in another order, with their parameters and identities, give the same bits."""
        if not case.obeys("permutation"):
            return
        sample = draw((30, 40), case.count)
        settings = varied(case, "abc"[: case.count])
        expected = blend(case, sample.tensors, sample.base, settings=settings)
        order = [2, 0, 1][-case.count :] if case.count == 3 else list(range(case.count))[::-1]
        turned = [sample.tensors[index] for index in order]
        aliases = ["abc"[index] for index in order]
        actual = blend(case, turned, sample.base, settings=settings, aliases=aliases)
        _same(actual, expected, "the order of the sources matters")

    def test_scale(self, case: OperatorCase) -> None:
        """Four times every tensor gives four times the result."""
        if not case.obeys("scale"):
            return
        sample = draw((30, 40), case.count)
        expected = blend(case, sample.tensors, sample.base) * 4
        _close(blend(case, [tensor * 4 for tensor in sample.tensors], sample.base * 4), expected)

    def test_task_scale(self, case: OperatorCase) -> None:
        """Four times every task vector gives four times the result's task vector."""
        if not case.obeys("task_scale"):
            return
        sample = draw((30, 40), case.count)
        longer = [sample.base + (tensor - sample.base) * 4 for tensor in sample.tensors]
        expected = sample.base + (blend(case, sample.tensors, sample.base) - sample.base) * 4
        _close(blend(case, longer, sample.base), expected)

    def test_translation(self, case: OperatorCase) -> None:
        """One tensor added to every input is added to the result."""
        if not case.obeys("translation"):
            return
        sample = draw((30, 40), case.count)
        shift = draw((30, 40), 1, seed=1).base
        moved = blend(case, [tensor + shift for tensor in sample.tensors], sample.base + shift)
        _close(moved, blend(case, sample.tensors, sample.base) + shift)

    def test_neutral_weight(self, case: OperatorCase) -> None:
        """A source of weight 0 gives the same bits as no such source."""
        if not case.obeys("neutral_weight"):
            return
        sample = draw((30, 40), 3)
        settings = varied(case, "abc")
        weight = settings.get("weight", case.spec.parameter("weight").default)
        kept = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys("abc", weight)
        without = {
            key: {alias: item for alias, item in value.items() if alias != "b"} if isinstance(value, Mapping) else value
            for key, value in settings.items()
        }
        ends = [sample.tensors[0], sample.tensors[2]]
        expected = blend(case, ends, sample.base, settings=without, aliases="ac")
        actual = blend(case, sample.tensors, sample.base, settings={**settings, "weight": {**kept, "b": 0.0}})
        _same(actual, expected, "a source of weight 0 takes part")

    def test_single(self, case: OperatorCase) -> None:
        """One source under default parameters gives that source."""
        if case.obeys("single"):
            sample = draw((3, 5), 1)
            _close(blend(case, sample.tensors, sample.base), sample.tensors[0])

    def test_identical(self, case: OperatorCase) -> None:
        """Equal sources under default parameters give that source."""
        if case.obeys("identical"):
            sample = draw((3, 5), 1)
            _close(blend(case, [sample.tensors[0].clone() for _ in range(case.count)], sample.base), sample.tensors[0])

    def test_search_ranges_are_allowed_values(self, case: OperatorCase) -> None:
        """What a space may draw, the method takes."""
        for parameter in case.spec.parameters:
            for value in parameter.search or ():
                _require(math.isfinite(value), f"{parameter.name}: {value}")
                parameter.check(value, case.spec.name)
            parameter.check(parameter.default, case.spec.name)
