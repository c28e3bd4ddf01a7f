"""Routes in the transformers engine: views of the sources' layers that compute what the exported checkpoint does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evomerge.errors import InfeasibleError
from evomerge.fitness import Objectives
from evomerge.fitness.config import EngineConfig, FitnessConfig
from evomerge.fitness.scorer import ScorerSpec, create_scorer
from evomerge.fitness.transformers_engine import TransformersEngine
from evomerge.merging import build
from evomerge.recipe import Recipe, SourceConfig
from evomerge.testing.engines import EngineContract, answers, likelihoods
from tests.merging.hops import SETTINGS, write_tiny

ROUNDING = 3e-5
"""On logits of about 4, in float32; the fold is the same, the order of roundings is not."""
HOPS = (("one", 0, 1.0), ("two", 0, -0.8), ("one", 0, 1.3), ("one", 1, 1.0), ("two", 1, 0.7), ("two", 1, -1.0))
IDS = torch.arange(3, 23).reshape(2, 10)


def only(alias: str) -> dict[str, Any]:
    return {"blend": {"method": "linear", "weight": {alias: 1.0}}}


def route(folder: Path, *hops: tuple[str, int, float], **keys: Any) -> Recipe:
    layers = [{"take": {alias: layer}, "scale": scale} for alias, layer, scale in hops or HOPS]
    sources = {name: {"model": str(folder / name)} for name in ("one", "two")}
    return Recipe.from_mapping(
        {
            "recipe": 1,
            "sources": sources,
            "dtype": "float32",
            "layers": layers,
            "embeddings": only("one"),
            "head": only("one"),
            **keys,
        }
    )


def blend(folder: Path, weight: float) -> Recipe:
    weights = {"one": weight, "two": 1.0}
    return route(folder, layers=None, embeddings=None, head=None, blend={"method": "linear", "weight": weights})


def start(folder: Path, dtype: Any = "float32") -> TransformersEngine:
    config = EngineConfig(device="cpu", dtype=dtype)
    return TransformersEngine(blend(folder, 1.0), base_dir=folder, config=config, batch_size=4)


@pytest.fixture(scope="module")
def shared(workplace: Path) -> Iterator[TransformersEngine]:
    engine = start(workplace)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: TransformersEngine) -> TransformersEngine:
    return shared


class TestRoutes(EngineContract):
    """An engine keeps its contract where one recipe is a route and the other is not."""

    @pytest.fixture
    def engine(self, shared: TransformersEngine) -> TransformersEngine:
        return shared

    @pytest.fixture
    def recipes(self, workplace: Path) -> tuple[Recipe, Recipe]:
        return route(workplace), blend(workplace, 0.4)

    @pytest.fixture
    def broken(self, workplace: Path) -> Recipe:
        blended = {"take": {"one": 0, "two": 1}, "blend": {"method": "linear", "weight": 3e38, "normalize": False}}
        return route(workplace, layers=[{"take": {"one": 0}}, blended, {"take": {"two": 0}}])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def exported(recipe: Recipe, out: Path, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    build(recipe, out, base_dir=folder)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


def layers(engine: TransformersEngine) -> list[nn.Module]:
    return list(engine.lm.model.model.layers)


def storage(module: nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in module.parameters()]


BLENDED = {"method": "ties", "weight": 0.7, "density": 0.5}
MASKED = {"method": "dare_linear", "weight": 0.7, "density": 0.5}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"layers": [{"take": {"one": 0}}]},
        {"layers": [{"take": {"one": 0}}, {"take": {"one": 1}, "scale": -0.5}]},
        {"layers": [{"take": {"one": 1, "two": 0}, "blend": BLENDED, "scale": 1.2}, {"take": {"two": 1}}] * 2},
        {"layers": [{"take": {"one": 1, "two": 1}, "blend": MASKED}, {"take": {"two": 0}}] * 2, "seed": 3},
        {"dtype": "bfloat16", "layers": [{"take": {"two": 1}}, {"take": {"one": 0}}, {"take": {"two": 1}}]},
        {"head": only("two"), "embeddings": {"blend": {"method": "linear", "weight": {"one": 1.0, "two": 0.5}}}},
    ],
    ids=["scaled route", "one hop", "in place", "blended", "random masks", "rounded to bfloat16", "blended embeddings"],
)
def test_a_route_computes_what_the_exported_checkpoint_does(
    workplace: Path, tmp_path: Path, engine: TransformersEngine, keys: dict[str, Any]
) -> None:
    recipe = route(workplace, **{"base": "one", **keys})
    model = exported(recipe, tmp_path / "out", workplace)
    engine.load(recipe)
    assert torch.allclose(logits(engine.lm.model), logits(model), rtol=0, atol=ROUNDING)
    assert engine.facts() == {"parameters": model.num_parameters(), "hops": model.config.num_hidden_layers}


def test_scores_are_those_of_the_exported_checkpoint(
    workplace: Path, tmp_path: Path, engine: TransformersEngine
) -> None:
    from lm_eval.models.huggingface import HFLM

    exported(route(workplace), tmp_path / "out", workplace)
    engine.load(route(workplace))

    class Exported:
        lm = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=4)

    assert likelihoods(Exported()) == pytest.approx(likelihoods(engine), rel=1e-5)  # type: ignore[arg-type]
    assert answers(Exported()) == answers(engine)  # type: ignore[arg-type]


def test_generation_has_a_cache_of_its_own_for_every_hop(workplace: Path, engine: TransformersEngine) -> None:
    """A layer that is run three times keeps three sets of keys and values."""
    engine.load(route(workplace, *[("one", 0, 1.0)] * 3, ("two", 1, 0.6)))
    model = engine.lm.model
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    cached = model.generate(IDS, use_cache=True, **options)
    assert len(cached.past_key_values.layers) == 4
    assert torch.equal(cached.sequences, model.generate(IDS, use_cache=False, **options).sequences)


def test_a_route_has_no_weights_of_its_own(workplace: Path, engine: TransformersEngine) -> None:
    """Repeated layers share their storage, also under different scales, and it is that of the resident sources."""
    engine.load(route(workplace))
    first, _, again, *_, fifth, sixth = layers(engine)
    assert storage(first) == storage(again)
    assert storage(fifth) == storage(sixth)
    sources = engine._sources
    resident = {
        alias: {sources.working(alias, name).data_ptr() for name in sources.models[alias].names()}
        for alias in ("one", "two")
    }
    assert set(storage(fifth)) <= resident["two"]
    assert set(storage(engine.lm.model)) <= resident["one"] | resident["two"]


def test_the_sources_stay_as_they_are(workplace: Path, engine: TransformersEngine) -> None:
    sources = engine._sources
    before = {name: sources.working("one", name).clone() for name in sources.models["one"].names()}
    for recipe in (route(workplace), blend(workplace, 0.4), route(workplace, ("one", 1, 2.0))):
        engine.load(recipe)
    assert all(torch.equal(sources.working("one", name), tensor) for name, tensor in before.items())


def test_blended_layers_are_made_once_and_kept_for_the_next_candidate_alone(
    workplace: Path, engine: TransformersEngine
) -> None:
    blended = {"take": {"one": 0, "two": 1}, "blend": {"method": "linear", "weight": {"one": 0.4, "two": 0.6}}}
    with_two = route(workplace, layers=[blended, {"take": {"one": 0}}, {**blended, "scale": 0.5}])
    engine.load(with_two)
    first, _, again = layers(engine)
    assert storage(first) == storage(again)
    before = storage(first)
    engine.load(route(workplace, layers=[{"take": {"two": 0}}, blended]))
    assert storage(layers(engine)[1]) == before
    engine.load(route(workplace))
    assert not engine._routes._blended


def test_a_nested_recipe_joins_the_pool_without_the_other_sources_being_read_again(
    workplace: Path, tmp_path: Path, engine: TransformersEngine
) -> None:
    engine.load(route(workplace))
    known = engine._sources.working("one", "lm_head.weight").data_ptr()
    for weight in (0.3, 0.9):
        inner = blend(workplace, weight).to_mapping()
        sources = {**route(workplace).to_mapping()["sources"], "merged": {"model": inner}}
        hops = [("one", 0, 1.0), ("merged", 1, 1.1), ("merged", 0, 1.0), ("merged", 1, 0.9)]
        recipe = route(workplace, *hops, sources=sources)
        engine.load(recipe)
        model = exported(recipe, tmp_path / str(weight), workplace)
        assert torch.allclose(logits(engine.lm.model), logits(model), rtol=0, atol=ROUNDING)
        assert storage(layers(engine)[1]) == storage(layers(engine)[3])
        assert engine._sources.working("one", "lm_head.weight").data_ptr() == known


def test_a_route_has_the_configuration_of_the_source_where_it_starts(
    tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    """As the exported checkpoint has it, whatever the search's own base is."""
    for seed, name in enumerate(("one", "two")):
        write_model(tmp_path / name, seed)
    path = tmp_path / "two" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))
    engine = start(tmp_path)
    found = []
    for order in (("one", "two"), ("two", "one")):
        recipe = route(tmp_path, sources={name: {"model": str(tmp_path / name)} for name in order})
        engine.load(recipe)
        found.append(logits(engine.lm.model))
        model = exported(recipe, tmp_path / order[0] / "out", tmp_path)
        assert torch.allclose(found[-1], logits(model), rtol=0, atol=ROUNDING)
    assert not torch.allclose(found[0], found[1], atol=0.01)


@pytest.mark.filterwarnings("ignore")  # of kernels that are missing here, and of token ids beyond a tiny vocabulary
@pytest.mark.parametrize(
    "kind", ["gemma3_text", "olmo2", "gpt_oss", "gpt2", "mamba2", "gpt_neox", "mixtral", "granitemoe"]
)
def test_routes_through_other_architectures(workplace: Path, tmp_path: Path, kind: str) -> None:
    """Sliding layers, post-norms, experts, tied heads, state spaces, other names; sources of different depth."""
    from tests.fitness.conftest import write_tokenizer

    assert kind in SETTINGS
    for seed, (name, depth) in enumerate((("one", 3), ("two", 4))):
        write_tokenizer(write_tiny(tmp_path / name, kind, seed=seed, layers=depth, epsilon=None))
    engine = start(tmp_path)
    recipe = route(tmp_path, *HOPS, ("two", 3, 0.9), ("one", 2, 1.0))
    engine.load(recipe)
    model = exported(recipe, tmp_path / "out", tmp_path)
    assert torch.allclose(logits(engine.lm.model), logits(model), rtol=0, atol=ROUNDING)


def test_a_tied_head_of_a_route_follows_the_embedding_and_counts_once(
    tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("one", "two")):
        write_model(tmp_path / name, seed, tied=True)
    engine = start(tmp_path)
    engine.load(route(tmp_path))
    model = engine.lm.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    loaded = exported(route(tmp_path), tmp_path / "out", tmp_path)
    assert engine.facts()["parameters"] == loaded.num_parameters()


def test_weights_in_the_engines_dtype_are_kept_for_all_routes(workplace: Path) -> None:
    engine = start(workplace, "bfloat16")
    engine.load(route(workplace, dtype="bfloat16"))
    first = storage(layers(engine)[0])
    engine.load(route(workplace, ("two", 0, 1.0), ("one", 0, 0.5), dtype="bfloat16"))
    assert storage(layers(engine)[1]) == first
    assert {parameter.dtype for parameter in engine.lm.model.parameters()} == {torch.bfloat16}


def test_a_weight_that_does_not_fit_the_engines_dtype_is_infeasible(workplace: Path) -> None:
    large = {"take": {"one": 0, "two": 0}, "blend": {"method": "linear", "weight": 1e7, "normalize": False}}
    engine = start(workplace, "float16")
    with pytest.raises(InfeasibleError, match="float16"):
        engine.load(route(workplace, layers=[large, {"take": {"two": 0}}]))


@pytest.mark.filterwarnings("ignore")
def test_experts_that_a_model_holds_as_one_are_converted_once_a_layer(workplace: Path, tmp_path: Path) -> None:
    """However often it is run and in however many routes; a blended expert is made again."""
    from tests.fitness.conftest import write_tokenizer

    for seed, name in enumerate(("one", "two")):
        write_tokenizer(write_tiny(tmp_path / name, "mixtral", seed=seed, layers=2))
    engine = start(tmp_path)
    engine.load(route(tmp_path, ("one", 0, 1.0), ("two", 1, 1.0), ("one", 0, 1.0)))
    first, _, again = layers(engine)
    experts = first.mlp.experts.gate_up_proj.data_ptr()
    assert experts == again.mlp.experts.gate_up_proj.data_ptr()
    engine.load(route(tmp_path, ("two", 0, 1.0), ("one", 0, 1.0)))
    assert layers(engine)[1].mlp.experts.gate_up_proj.data_ptr() == experts
    blended = {"take": {"one": 0, "two": 0}, "blend": {"method": "linear", "weight": {"one": 0.5, "two": 0.5}}}
    engine.load(route(tmp_path, layers=[blended, {"take": {"one": 0}}]))
    made, taken = layers(engine)
    assert taken.mlp.experts.gate_up_proj.data_ptr() == experts != made.mlp.experts.gate_up_proj.data_ptr()


def test_hops_and_parameters_are_objectives_of_any_recipe_and_what_cannot_be_built_is_a_result(
    workplace: Path, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "tasks").symlink_to(workplace / "tasks")
    spec = ScorerSpec(
        sources={name: SourceConfig(model=str(workplace / name)) for name in ("one", "two")},
        base=None,
        suite=write_suite(tmp_path, [{"task": "choices", "limit": 20}]),
        base_dir=workplace,
        engine=EngineConfig(device="cpu"),
    )
    objectives = Objectives.parse(FitnessConfig(suite="", objectives=("-hops", "-parameters / 1000")))
    objectives.check({})
    scorer = create_scorer(spec)
    merged, longer = (scorer.score(recipe, "search") for recipe in (blend(workplace, 0.5), route(workplace)))
    (hops, size), (more, larger) = (objectives.measure(evaluation) for evaluation in (merged, longer))
    assert (hops.mean, more.mean) == (-2, -6)
    assert larger.mean < size.mean < 0
    endless = scorer.score(route(workplace, *[("one", 0, 1e-200)] * 3), "search")
    assert endless.infeasible is not None
    assert "product of the scales" in endless.infeasible
    scorer.close()
