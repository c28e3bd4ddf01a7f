"""Recipes over sources of which something was measured: planned, identified, merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evomerge.checkpoints import StatisticNote, open_checkpoint, write_statistic
from evomerge.checkpoints.statistics import importance_scales
from evomerge.errors import RecipeError, SourceError
from evomerge.fitness.vllm.windows import make_window
from evomerge.merging import build, materialise, open_sources, plan
from evomerge.recipe import Recipe, identity, read_recipe

LINEAR_LAYER = "model.layers.1.mlp.up_proj.weight"
Write = Callable[..., dict[str, Tensor]]


@pytest.fixture
def write(models: Path) -> Write:
    """Writes random statistics of a model to `stats/<alias>`, and returns them."""

    def make(alias: str, kind: Any = "fisher", seed: int = 0, **changes: Tensor) -> dict[str, Tensor]:
        source = open_checkpoint(models / alias)
        rng = np.random.default_rng([seed, *alias.encode()])
        if kind == "gram":
            name, inputs = LINEAR_LAYER, rng.standard_normal((50, 16))
            tensors = {name: torch.from_numpy(inputs.T @ inputs / 50).float()}
            scales: dict[str, float] = {}
        else:
            tensors = {
                name: torch.from_numpy(rng.lognormal(size=source.info(name).shape)).float() * 1e-6
                for name in source.names()
            }
            tensors |= changes
            scales = importance_scales(tensors.values())
        note = StatisticNote(kind=kind, source=source.content_hash, calibration=str(seed), **scales)
        write_statistic(models / "stats" / alias / f"{kind}.safetensors", note, tensors)
        return tensors

    return make


def recipe(method: str, *, named: tuple[str, ...] = ("math", "ja"), **keys: Any) -> Recipe:
    blend = {"method": method, **keys.pop("blend", {})}
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": {
                alias: {"model": alias, **({"statistics": f"stats/{alias}"} if alias in named else {})}
                for alias in ("base", "math", "ja")
            },
            "base": "base",
            "dtype": "float32",
            "blend": blend,
            **keys,
        }
    )


def weights_of(models: Path, alias: str) -> dict[str, Tensor]:
    return load_file(models / alias / "model.safetensors")


def test_fisher_weighs_every_tensor_by_its_statistic(models: Path, write: Write) -> None:
    measured = {alias: write(alias) for alias in ("math", "ja")}
    one = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 0.5}, "floor": 0.0, "normalize": False})
    made = dict(materialise(plan(one, open_sources(one, models))))
    for name, result in made.items():
        parts = [(c, measured[alias][name].double(), weights_of(models, alias)[name].double())
                 for alias, c in (("math", 1.0), ("ja", 0.5))]  # fmt: skip
        exact = sum(c * f * w for c, f, w in parts) / sum(c * f for c, f, _ in parts)
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


def test_regmean_solves_where_there_is_a_gram_and_averages_elsewhere(models: Path, write: Write) -> None:
    grams = [write(alias, "gram")[LINEAR_LAYER].double() for alias in ("math", "ja")]
    one = recipe("regmean", blend={"alpha": 1.0, "weight": {"math": 1.0, "ja": 1.0}})
    made = dict(materialise(plan(one, open_sources(one, models))))
    for name, result in made.items():
        pair = [weights_of(models, alias)[name].double() for alias in ("math", "ja")]
        exact = (pair[0] + pair[1]) / 2
        if name == LINEAR_LAYER:
            exact = (pair[0] @ grams[0] + pair[1] @ grams[1]) @ torch.linalg.inv(grams[0] + grams[1])
        torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-5)


def test_ota_keeps_the_top_of_the_whole_model(models: Path, write: Write) -> None:
    """The global threshold is that of one sort over every v τ² of the model."""
    v = write("math", "adam")
    one = recipe("ota", named=("math",), blend={"density": 0.3, "weight": {"math": 1.0}})
    made = dict(materialise(plan(one, open_sources(one, models))))
    base, math = weights_of(models, "base"), weights_of(models, "math")
    tau = {name: math[name].double() - base[name].double() for name in base}
    score = torch.cat([(v[name].double() * tau[name] ** 2).flatten() for name in sorted(base)])
    limit = score.sort(descending=True).values[int(0.3 * len(score)) - 1]
    for name, result in made.items():
        kept = v[name].double() * tau[name] ** 2 >= limit * (1 - 1e-9)
        torch.testing.assert_close(result, torch.where(kept, math[name], base[name]), rtol=0, atol=1e-6)


def test_a_method_without_its_statistic_is_refused_when_it_is_planned(models: Path, write: Write) -> None:
    write("math")
    write("ja", "gram")
    one = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 1.0}})
    text = r"sources.ja: method 'fisher' needs the statistic 'fisher' of this source; compute it with `evomerge stats`"
    with pytest.raises(RecipeError, match=text):
        plan(one, open_sources(one, models))


def test_a_source_that_takes_no_part_needs_no_statistic(models: Path, write: Write) -> None:
    write("math")
    alone = recipe("fisher", named=("math",), blend={"weight": {"math": 1.0}})
    made = dict(materialise(plan(alone, open_sources(alone, models))))
    assert torch.equal(made[LINEAR_LAYER], weights_of(models, "math")[LINEAR_LAYER])


def test_a_statistic_of_another_source_is_refused_when_it_is_opened(models: Path, write: Write) -> None:
    write("math")
    data = recipe("fisher").to_mapping()
    data["sources"]["ja"]["statistics"] = "stats/math"
    with pytest.raises(SourceError, match=r"sources.ja: .*computed for another model"):
        open_sources(Recipe.from_mapping(data), models)


def test_a_negative_importance_is_refused_before_it_weighs_anything(models: Path, write: Write) -> None:
    write("math", **{"model.norm.weight": -torch.ones(16)})
    write("ja")
    one = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 1.0}})
    merge = plan(one, open_sources(one, models))
    with pytest.raises(SourceError, match=r"'model.norm.weight' has values that are negative"):
        list(materialise(merge))


class TestIdentity:
    def test_it_depends_on_what_the_method_needs_and_on_nothing_else_of_it(self, models: Path, write: Write) -> None:
        def of(one: Recipe) -> str:
            return identity(one, open_sources(one, models).infos)

        blend = {"weight": {"math": 1.0, "ja": 1.0}}
        for alias in ("math", "ja"):
            write(alias)
            write(alias, "gram")
        fisher, linear = of(recipe("fisher", blend=blend)), of(recipe("linear", blend=blend))
        assert linear == of(recipe("linear", named=(), blend=blend))
        write("ja", "gram", seed=1)
        assert of(recipe("fisher", blend=blend)) == fisher
        write("ja", seed=1)
        assert of(recipe("fisher", blend=blend)) != fisher
        assert of(recipe("linear", blend=blend)) == linear

    def test_the_recipe_beside_a_built_model_finds_the_statistics_again(
        self, models: Path, write: Write, tmp_path: Path
    ) -> None:
        for alias in ("math", "ja"):
            write(alias)
        one = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 1.0}})
        report = build(one, tmp_path / "far" / "out", base_dir=models)
        again = read_recipe(report.out / "recipe.yaml")
        assert again.sources["ja"].statistics == "../../models/stats/ja"
        assert build(again, tmp_path / "again", base_dir=report.out).recipe_id == report.recipe_id


def test_segments_take_their_stretch_of_a_statistic(models: Path, write: Write) -> None:
    for alias in ("math", "ja"):
        write(alias)
    blend = {"method": "fisher", "weight": {"math": 1.0, "ja": 1.0}}
    whole = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 1.0}})
    cut = Recipe.from_mapping({**whole.to_mapping(), "blend": blend, "segments": [{"until": 700}, {"until": 1001}, {}]})
    sources = open_sources(whole, models)
    expected, actual = (dict(materialise(plan(one, sources))) for one in (whole, cut))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_window_takes_its_part_of_a_statistic(models: Path, write: Write) -> None:
    for alias in ("math", "ja"):
        write(alias)
    one = recipe("fisher", blend={"weight": {"math": 1.0, "ja": 1.0}})
    merge = plan(one, open_sources(one, models))
    (planned,) = [planned for planned in merge.tensors if planned.name == LINEAR_LAYER]
    whole = dict(materialise(merge))[LINEAR_LAYER]
    part = make_window(merge, planned, "cpu", (1, 3, 5))
    assert torch.equal(part, whole[:, 3:8])


def test_a_route_reads_the_statistics_of_the_layers_that_it_takes(models: Path, write: Write) -> None:
    measured = {alias: write(alias) for alias in ("math", "ja")}
    layers = [{"take": {"math": 1, "ja": 0}, "blend": {"weight": {"math": 1.0, "ja": 1.0}}}]
    one = recipe("fisher", layers=layers, blend={"weight": {"math": 1.0, "ja": 1.0}, "floor": 0.0, "normalize": False})
    made = dict(materialise(plan(one, open_sources(one, models, any_depth=True))))
    names = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight")
    parts = [(measured[alias][name].double(), weights_of(models, alias)[name].double())
             for alias, name in zip(("math", "ja"), names, strict=True)]  # fmt: skip
    exact = sum(f * w for f, w in parts) / sum(f for f, _ in parts)
    torch.testing.assert_close(made[names[1]].double(), exact, rtol=1e-5, atol=1e-6)
