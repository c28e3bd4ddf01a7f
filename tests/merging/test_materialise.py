from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.checkpoints import open_checkpoint
from evomerge.errors import InfeasibleError, SourceError
from evomerge.merging import make_tensor, materialise, open_sources, plan
from evomerge.operators import get, load
from evomerge.operators.kernels.context import Context
from evomerge.operators.kernels.selection import kept_count
from evomerge.recipe import Recipe
from evomerge.testing.checkpoints import write_tiny_llama

Array = NDArray[np.float64]
Make = Callable[..., Recipe]


def merged(recipe: Recipe, folder: Path, **options: Any) -> dict[str, Tensor]:
    sources = open_sources(recipe, folder, **options)
    return {name: tensor.clone() for name, tensor in materialise(plan(recipe, sources))}


def stored(folder: Path) -> dict[str, Array]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name).double().numpy() for name in checkpoint.names()}


def oracle_ties(base: Array, deltas: list[Array], weights: list[float], limits: list[float]) -> Array:
    """TIES in float64: trim, elect the sign of the weighted sum, weighted mean of those that agree."""
    trimmed = [np.where(np.abs(delta) >= limit, delta, 0.0) for delta, limit in zip(deltas, limits, strict=True)]
    weighted = [weight * delta for weight, delta in zip(weights, trimmed, strict=True)]
    elected = np.sign(sum(weighted))
    agree = [(np.sign(item) == elected) & (item != 0) for item in weighted]
    top = sum(np.where(yes, item, 0.0) for yes, item in zip(agree, weighted, strict=True))
    bottom = sum(np.where(yes, weight, 0.0) for yes, weight in zip(agree, weights, strict=True))
    return base + top / np.where(bottom == 0, 1.0, bottom)


def nth_largest(values: Array, density: float) -> float:
    return float(np.sort(np.abs(values).ravel())[-kept_count(values.size, density)])


class TestOracle:
    """Whole merges against NumPy in float64."""

    @pytest.mark.parametrize("resident", [False, True])
    def test_linear(self, models: Path, make_recipe: Make, resident: bool) -> None:
        base, math_, ja = (stored(models / name) for name in ("base", "math", "ja"))
        recipe = make_recipe({"method": "linear", "weight": {"base": 0.5, "math": 0.9, "ja": 0.3}})

        for name, tensor in merged(recipe, models, resident=resident).items():
            expected = (0.5 * base[name] + 0.9 * math_[name] + 0.3 * ja[name]) / 1.7
            np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=1e-6)

    def test_task_arithmetic(self, models: Path, make_recipe: Make) -> None:
        base, math_, ja = (stored(models / name) for name in ("base", "math", "ja"))
        recipe = make_recipe({"method": "task_arithmetic", "weight": {"math": 0.7, "ja": -0.4}, "scale": 0.5})

        for name, tensor in merged(recipe, models).items():
            expected = base[name] + 0.5 * (0.7 * (math_[name] - base[name]) - 0.4 * (ja[name] - base[name]))
            np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=1e-6)

    def test_slerp(self, models: Path, make_recipe: Make) -> None:
        base, other = stored(models / "base"), stored(models / "math")
        sources = {name: {"model": name} for name in ("base", "math")}

        for name, tensor in merged(make_recipe({"method": "slerp", "t": 0.3}, sources=sources), models).items():
            a, b = base[name].ravel(), other[name].ravel()
            angle = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            expected = (math.sin(0.7 * angle) * a + math.sin(0.3 * angle) * b) / math.sin(angle)
            np.testing.assert_allclose(tensor.double().numpy().ravel(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("resident", [False, True])
    @pytest.mark.parametrize("scope", ["tensor", "global"])
    def test_ties(self, models: Path, make_recipe: Make, scope: str, resident: bool) -> None:
        """A global threshold counts every entry of the model, a tensor's own only its own."""
        base, math_, ja = (stored(models / name) for name in ("base", "math", "ja"))
        weights, densities = [0.7, 0.4], [0.3, 0.6]
        blend = {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": {"math": 0.3, "ja": 0.6}}
        # The entries at the threshold are compared in float32, as the kernel forms them.
        deltas = [
            {name: (other[name].astype(np.float32) - base[name].astype(np.float32)).astype(float) for name in base}
            for other in (math_, ja)
        ]
        whole = [np.concatenate([delta[name].ravel() for name in delta]) for delta in deltas]

        for name, tensor in merged(make_recipe({**blend, "scope": scope}), models, resident=resident).items():
            own = [delta[name] for delta in deltas]
            seen = whole if scope == "global" else own
            limits = [nth_largest(values, density) for values, density in zip(seen, densities, strict=True)]
            expected = oracle_ties(base[name], own, weights, limits)
            np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=0, atol=1e-6)

    def test_bfloat16_is_rounded_once(self, tmp_path: Path, make_recipe: Make) -> None:
        """Sources in bfloat16 are blended in float32; the result is the rounding of that."""
        for seed, name in enumerate(("base", "math", "ja")):
            write_tiny_llama(tmp_path / name, seed, dtype=torch.bfloat16)
        exact = merged(make_recipe(), tmp_path)
        rounded = merged(make_recipe(dtype="bfloat16"), tmp_path)

        for name, tensor in exact.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(rounded[name], tensor.to(torch.bfloat16))

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        method=st.sampled_from(["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]),
        weights=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    )
    def test_the_order_of_sources_does_not_change_a_bit(
        self, models: Path, make_recipe: Make, method: str, weights: tuple[float, float]
    ) -> None:
        blend = {"method": method, "weight": {"math": weights[0], "ja": weights[1]}}
        turned = {name: {"model": name} for name in ("ja", "base", "math")}

        one, other = merged(make_recipe(blend), models), merged(make_recipe(blend, sources=turned), models)
        assert all(torch.equal(one[name], other[name]) for name in one)


class TestExactness:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize(
        "blend",
        [
            {"method": "linear", "weight": {"math": 1.0}},
            {"method": "linear", "weight": {"math": 0.3}},
            {"method": "linear", "weight": {"math": 1.0, "base": 0.0}, "normalize": False},
            {"method": "task_arithmetic", "weight": {"math": 1.0}},
            {"method": "task_arithmetic", "weight": {"math": 1.0, "ja": 0.0}},
        ],
    )
    def test_weight_one_on_one_source_is_that_source(
        self, tmp_path: Path, make_recipe: Make, blend: dict[str, Any], dtype: str
    ) -> None:
        """Bit by bit, in every dtype: base + (source - base) alone would not be."""
        for seed, name in enumerate(("base", "math", "ja")):
            write_tiny_llama(tmp_path / name, seed, dtype=getattr(torch, dtype))
        source = load_file(tmp_path / "math" / "model.safetensors")

        for name, tensor in merged(make_recipe(blend, dtype=dtype), tmp_path).items():
            assert tensor.dtype == source[name].dtype
            assert torch.equal(tensor, source[name])

    @pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
    def test_no_weight_at_all_is_the_base(self, models: Path, make_recipe: Make, method: str) -> None:
        base = load_file(models / "base" / "model.safetensors")

        for name, tensor in merged(make_recipe({"method": method, "weight": 0.0}), models).items():
            assert torch.equal(tensor, base[name])

    def test_a_model_merged_with_itself_is_itself(self, models: Path, make_recipe: Make) -> None:
        sources = {name: {"model": "math"} for name in ("base", "one", "two")}
        source = load_file(models / "math" / "model.safetensors")
        blends: list[dict[str, Any]] = [
            {"method": "linear", "weight": {"one": 0.5, "two": 0.5}},
            {"method": "task_arithmetic", "weight": 0.9},
            {"method": "ties", "weight": 0.9},
        ]
        for blend in blends:
            for name, tensor in merged(make_recipe(blend, sources=sources), models).items():
                assert torch.equal(tensor, source[name])


class TestPlaces:
    def test_each_part_has_its_own_blend(self, models: Path, make_recipe: Make) -> None:
        """Layers, modules within them, embeddings and head: each takes what it is told."""
        source = {name: load_file(models / name / "model.safetensors") for name in ("base", "math", "ja")}
        only = {name: {"method": "linear", "weight": {name: 1.0}} for name in source}
        recipe = make_recipe(
            only["base"],
            embeddings={"blend": only["ja"]},
            head={"blend": only["math"]},
            layers=[
                {"take": {"base": 0, "math": 0}, "modules": {"mlp": {"weight": {"math": 1.0, "base": 0.0}}}},
                {"take": {"ja": 1}},
            ],
        )

        for name, tensor in merged(recipe, models).items():
            if "embed" in name or ".layers.1." in name:
                expected = "ja"
            elif name in ("lm_head.weight", "model.norm.weight") or ".mlp." in name:
                expected = "math"
            else:
                expected = "base"
            assert torch.equal(tensor, source[expected][name]), name

    def test_buffers_are_the_bases(self, models: Path, make_recipe: Make) -> None:
        """Integers and rotary frequencies are copied as they are, in their dtype; others' extra ones are left."""
        for index, name in enumerate(("base", "math")):
            file = models / name / "model.safetensors"
            extra = {
                "model.position_ids": torch.arange(4) + index,
                "model.rotary_emb.inv_freq": torch.full((3,), 0.1 + index, dtype=torch.float32),
            }
            save_file({**load_file(file), **extra}, file)

        found = merged(make_recipe(dtype="bfloat16"), models)
        assert torch.equal(found["model.position_ids"], torch.arange(4))
        assert torch.equal(found["model.rotary_emb.inv_freq"], torch.full((3,), 0.1))


class TestNotFinite:
    @pytest.fixture
    def broken(self, models: Path) -> Path:
        file = models / "math" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(tensors, file)
        return models

    @pytest.mark.parametrize("resident", [False, True])
    @pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
    def test_a_source_is_named_with_its_tensor(
        self, broken: Path, make_recipe: Make, method: str, resident: bool
    ) -> None:
        recipe = make_recipe({"method": method, "weight": {"math": 0.7, "ja": 0.4}})
        with pytest.raises(SourceError, match=r"source 'math': tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
            merged(recipe, broken, resident=resident)

    def test_a_copied_source_is_checked_too(self, broken: Path, make_recipe: Make) -> None:
        with pytest.raises(SourceError, match="source 'math'"):
            merged(make_recipe({"method": "linear", "weight": {"math": 1.0}}), broken)

    def test_an_overflow_is_the_recipes_fault(self, models: Path, make_recipe: Make) -> None:
        recipe = make_recipe({"method": "task_arithmetic", "weight": 1e6}, dtype="float16")
        with pytest.raises(InfeasibleError, match="NaN or infinite values in float16; use smaller weights"):
            merged(recipe, models)


class TestResident:
    def test_gives_the_same_bits(self, models: Path, make_recipe: Make) -> None:
        for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
            recipe = make_recipe({"method": method, "weight": {"math": 0.7, "ja": 0.4}})
            mapped, kept = merged(recipe, models), merged(recipe, models, resident=True)
            assert all(torch.equal(mapped[name], kept[name]) for name in mapped)

    def test_reads_no_file_again(self, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Merging again is memory to memory, copies among it."""
        sources = open_sources(make_recipe(), models, resident=True)
        assert sources.infos
        monkeypatch.setattr("evomerge.checkpoints.files.WeightFile.tensor", None)

        for blend in ({"method": "ties", "scope": "global"}, {"method": "linear", "weight": {"math": 1.0}}):
            assert len(list(materialise(plan(make_recipe(blend), sources)))) == 21

    def test_sources_survive_any_number_of_merges(self, models: Path, make_recipe: Make) -> None:
        """No kernel writes to what is kept."""
        recipe = make_recipe({"method": "dare_ties", "weight": {"math": 0.7, "ja": 0.4}})
        sources = open_sources(recipe, models, resident=True)
        first = {name: tensor.clone() for name, tensor in materialise(plan(recipe, sources))}

        for _ in range(3):
            assert all(torch.equal(first[name], tensor) for name, tensor in materialise(plan(recipe, sources)))


class TestStatistics:
    def test_histograms_are_made_once(self, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A search over weights streams the task vectors twice in all, not twice a candidate."""
        sources = open_sources(make_recipe(), models)
        passes: list[str] = []
        stream = sources.statistics._task_vector
        monkeypatch.setattr(
            sources.statistics, "_task_vector", lambda alias, *others: passes.append(alias) or stream(alias, *others)
        )

        for weight in (0.3, 0.6, 0.9):
            recipe = make_recipe({"method": "ties", "scope": "global", "weight": weight})
            list(materialise(plan(recipe, sources)))
        assert sorted(passes) == ["ja", "ja", "math", "math"]

    @pytest.mark.parametrize("method", ["pcb", "opcm"])
    def test_a_whole_model_is_measured_once(
        self, models: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """All tensors of a merge share its passes, and so do merges that differ in what does not matter to these."""
        sources = open_sources(make_recipe(), models)
        passes: list[object] = []
        once = sources.statistics.once
        monkeypatch.setattr(
            sources.statistics, "once", lambda of, make: once(of, lambda whole: passes.append(of) or make(whole))
        )
        merged, counts = [], []
        for weight in ({"math": 1.0, "ja": 0.5}, {"math": 1.0, "ja": 2.0}, {"math": 1.0, "ja": 0.5}):
            recipe = make_recipe({"method": method, "scope": "global", "weight": weight})
            merged.append(dict(materialise(plan(recipe, sources))))
            counts.append(len(passes))
        assert counts == {"pcb": [3, 3, 3], "opcm": [1, 2, 2]}[method]
        assert all(torch.equal(tensor, merged[2][name]) for name, tensor in merged[0].items())

    def test_a_measure_that_failed_is_made_again(self, models: Path, make_recipe: Make) -> None:
        statistics = open_sources(make_recipe(), models).statistics

        def fail(_: object) -> int:
            raise SourceError("unreadable")

        with pytest.raises(SourceError):
            statistics.once("what", fail)
        assert statistics.once("what", lambda _: 1) == 1
        assert statistics.once("what", fail) == 1

    def test_pcb_over_the_whole_model_is_that_of_its_flat_vector(self, models: Path, make_recipe: Make) -> None:
        """Against the same method on one vector of all entries."""
        base, *others = (load_file(models / name / "model.safetensors") for name in ("base", "math", "ja"))
        flat = [torch.cat([source[name].float().flatten() for name in sorted(base)]) for source in (base, *others)]
        recipe = make_recipe({"method": "pcb", "scope": "global", "density": 0.3, "weight": {"math": 1.0, "ja": 0.5}})
        merged = dict(materialise(plan(recipe, open_sources(recipe, models))))
        spec, context = get("pcb"), Context(name="all", source_ids=("1", "2"))
        params = spec.complete({"density": 0.3, "weight": {"math": 1.0, "ja": 0.5}}, ("math", "ja"))
        expected = load(spec)(flat[1:], flat[0], params, context)
        torch.testing.assert_close(torch.cat([merged[name].flatten() for name in sorted(base)]), expected)

    def test_histograms_are_kept_between_processes(
        self, models: Path, make_recipe: Make, own_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process finds them by content: no pass is made again; a broken file costs one pass."""
        expected = open_sources(make_recipe(), models).statistics.threshold("math", "base", 0.3)
        kept = sorted((own_cache / "histograms").iterdir())
        assert len(kept) == 2

        passes: list[str] = []
        other = open_sources(make_recipe(), models).statistics
        stream = other._task_vector
        monkeypatch.setattr(other, "_task_vector", lambda *of: passes.append(of[0]) or stream(*of))
        assert other.threshold("math", "base", 0.3) == expected
        assert passes == []

        kept[0].write_bytes(b"broken")
        again = open_sources(make_recipe(), models).statistics
        stream = again._task_vector
        monkeypatch.setattr(again, "_task_vector", lambda *of: passes.append(of[0]) or stream(*of))
        assert again.threshold("math", "base", 0.3) == expected
        assert passes == ["math"]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(density=st.floats(0, 1, exclude_min=True))
    def test_the_threshold_is_that_of_a_sort(self, models: Path, make_recipe: Make, density: float) -> None:
        sources = open_sources(make_recipe(), models)
        base, other = (load_file(models / name / "model.safetensors") for name in ("base", "math"))
        whole = torch.cat([(other[name] - base[name]).abs().flatten() for name in base])

        expected = float(torch.sort(whole, descending=True).values[kept_count(len(whole), density) - 1])
        assert sources.statistics.threshold("math", "base", density) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"blend": {"method": "ties", "weight": {"math": 0.7, "ja": 0.4}, "density": 0.5}},
        {"blend": {"method": "model_stock"}},
        {"lines": {"alpha": "auto"}},
        {"layers": [{"take": {"math": 0}, "scale": 0.5}, {"take": {"ja": 0}}]},
        {"dtype": "bfloat16"},
    ],
    ids=["fused", "elected", "of directions", "drawn in", "copied and rescaled", "rounded"],
)
def test_a_tensor_may_be_made_in_memory_that_is_given(
    models: Path, make_recipe: Make, keys: dict[str, Any], dtype: torch.dtype
) -> None:
    recipe = make_recipe(**keys)
    merge = plan(recipe, open_sources(recipe, models))
    for planned in merge.tensors:
        out = torch.full(planned.info.shape, math.nan, dtype=dtype)
        assert make_tensor(merge, planned, out=out) is not None
        assert torch.equal(out, make_tensor(merge, planned).to(dtype))


def test_two_aliases_of_one_folder_are_opened_once(models: Path, make_recipe: Make) -> None:
    sources = open_sources(
        make_recipe({"method": "linear"}, sources={n: {"model": "math"} for n in ("base", "x")}), models
    )

    assert sources.models["base"] is sources.models["x"]
