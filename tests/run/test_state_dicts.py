"""A search over state dicts with a scorer of one's own: by hand, to its end, with every searcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import evomerge
from evomerge.errors import ConfigError, SourceError, StateError
from evomerge.run import mixtures
from evomerge.run.state_dicts import Scored, StateDictSearch
from evomerge.search import searcher_names

SIZE = 40
BREEDING = ("natural_niches", "map_elites")


def sources(count: int = 2) -> dict[str, dict[str, Tensor]]:
    """Models that are right, which is 1, in one stretch each, and -1 elsewhere."""
    made = {}
    for index in range(count):
        weight = torch.full((SIZE,), -1.0)
        weight[index * SIZE // count : (index + 1) * SIZE // count] = 1.0
        made[f"model{index}"] = {"layer.weight": weight.view(4, 10), "steps": torch.tensor(index)}
    return made


def closeness(weights: Mapping[str, Tensor]) -> Tensor:
    """One score a weight, 1 where it is 1."""
    return (1 - (weights["layer.weight"].flatten() - 1).abs() / 4).clamp(0, 1)


def halves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scores = closeness(weights)
    return {"front": scores[: SIZE // 2], "back": scores[SIZE // 2 :]}


def niches(count: int = 2, **changes: Any) -> StateDictSearch:
    return evomerge.Search.over(sources(count), closeness, **{"options": {"archive": 8}, **changes})


def test_a_search_in_a_notebook() -> None:
    search = niches()
    search.run(evaluations=300)
    parents = max(float(closeness(source).mean()) for source in sources().values())
    assert search.best.objectives["score"] > parents + 0.05
    weights = search.best.state_dict()
    assert float(closeness(weights).mean()) == pytest.approx(search.best.objectives["score"])
    assert {name: tensor.shape for name, tensor in weights.items()} == {"layer.weight": (4, 10), "steps": ()}


def test_the_best_state_dict_is_not_touched_by_a_search_that_goes_on() -> None:
    search = niches()
    search.run(evaluations=5)
    weights = search.best.state_dict()
    before = weights["layer.weight"].clone()
    search.run(evaluations=20)
    assert torch.equal(weights["layer.weight"], before)
    weights["layer.weight"].zero_()
    assert float(closeness(search.best.state_dict()).mean()) == pytest.approx(search.best.objectives["score"])


def test_running_twice_is_running_once() -> None:
    once, twice = niches(seed=3), niches(seed=3)
    once.run(evaluations=60)
    for part in (1, 20, 39):
        twice.run(evaluations=part, progress=False)
    assert once.history == twice.history
    assert [point.evaluations for point in once.history] == list(range(1, 61))


def test_the_seed_decides() -> None:
    runs = [niches(seed=seed) for seed in (0, 0, 1)]
    for search in runs:
        search.run(evaluations=30)
    assert runs[0].history == runs[1].history != runs[2].history


def test_by_hand_it_is_the_same_search() -> None:
    by_hand, run = niches(), niches()
    run.run(evaluations=25)
    for _ in range(25):
        for candidate in by_hand.ask():
            by_hand.tell(candidate, closeness(by_hand.state_dict(candidate)))
    assert by_hand.history == run.history
    assert torch.equal(by_hand.best.state_dict()["layer.weight"], run.best.state_dict()["layer.weight"])


def test_several_children_are_asked_for_at_once_and_told_in_any_order() -> None:
    search = niches()
    for _ in range(5):
        scored = [(candidate, search.state_dict(candidate)) for candidate in search.ask(8)]
        for candidate, weights in reversed(scored):
            search.tell(candidate, closeness(weights))
    assert len(search.history) == 40
    assert search.best.objectives["score"] > 0.8


@pytest.mark.parametrize("searcher", sorted(set(searcher_names()) - {"portfolio"}))
def test_every_searcher_works_over_state_dicts(searcher: str) -> None:
    options = {"archive": 8} if searcher == "natural_niches" else {}
    search = evomerge.Search.over(
        sources(3), halves, searcher=searcher, options=options, objectives=["front", "back"], chunks=4
    )
    search.run(evaluations=24)
    assert len(search.history) == 24
    assert list(search.best.objectives) == ["front", "back"]
    again = search.state_dict(search.best.candidate)
    assert torch.equal(again["layer.weight"], search.best.state_dict()["layer.weight"])
    assert bool(search.population) == (searcher in BREEDING)
    front = search.archive.front()
    assert front
    assert search.archive.best() == search.best.candidate.id


@pytest.mark.parametrize("mutation", [0.0, 0.01])
def test_a_portfolio_goes_from_niches_to_numbers(mutation: float) -> None:
    stages = [
        {
            "searcher": "natural_niches",
            "options": {"archive": 8, "mutation": mutation},
            "until": {"evaluations": 20},
        },
        {"searcher": "nsga_ii", "options": {"population": 8}},
    ]
    search = evomerge.Search.over(sources(), halves, searcher="portfolio", options={"stages": stages}, chunks=4)
    search.run(evaluations=40)
    assert len(search.history) == 40
    assert search.best.recipe.segments is not None


@pytest.mark.parametrize("small", [0, SIZE])
def test_the_recipe_of_the_best_gives_its_weights_again(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit where individuals are pieces; to rounding where they are weights."""
    monkeypatch.setattr(mixtures, "SMALL", small)
    search = niches(3)
    search.run(evaluations=80)
    recipe = evomerge.Recipe.from_yaml(search.best.recipe.to_yaml())
    assert set(recipe.sources) == {"model0", "model1", "model2"}
    again = niches(3).state_dict(recipe)["layer.weight"]
    torch.testing.assert_close(again, search.best.state_dict()["layer.weight"], atol=1e-6 if small else 0, rtol=0)


def test_mutation_keeps_weights_in_memory_and_a_recipe_all_the_same() -> None:
    search = niches(options={"archive": 8, "mutation": 0.05})
    search.run(evaluations=150)
    without = niches()
    without.run(evaluations=150)
    assert search.history != without.history
    again = niches().state_dict(search.best.recipe)
    torch.testing.assert_close(again["layer.weight"], search.best.state_dict()["layer.weight"], atol=1e-4, rtol=0)
    assert not torch.equal(again["layer.weight"], sources()["model0"]["layer.weight"])


def test_the_population_is_what_the_searcher_breeds() -> None:
    search = niches()
    search.run(evaluations=50)
    assert isinstance(search.searcher.members, tuple)  # type: ignore[attr-defined]
    assert [member.candidate.id for member in search.population] == list(search.searcher.members)  # type: ignore[attr-defined]
    for member in search.population:
        np.testing.assert_allclose(closeness(member.state_dict()), member.samples["score"], atol=1e-6)


@pytest.mark.parametrize("constant", [{"SHORT": 0}, {"STRETCH": 7}, {"REMEMBERED": 0}])
def test_how_weights_are_computed_makes_no_difference(
    constant: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixtures, "SMALL", 0)
    usual = niches(3)
    usual.run(evaluations=60)
    for name, value in constant.items():
        monkeypatch.setattr(mixtures, name, value)
    other = niches(3)
    other.run(evaluations=60)
    assert other.history == usual.history
    assert torch.equal(other.best.state_dict()["layer.weight"], usual.best.state_dict()["layer.weight"])


def test_pieces_and_weights_are_the_same_search(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = niches(3)
    weights.run(evaluations=200)
    monkeypatch.setattr(mixtures, "SMALL", 0)
    pieces = niches(3)
    pieces.run(evaluations=200)
    for one, other in zip(weights.history, pieces.history, strict=True):
        assert one.objectives == pytest.approx(other.objectives, abs=1e-5)


def test_a_candidate_keeps_its_recipe_whatever_became_of_it() -> None:
    search = niches()
    candidates = [candidate for _ in range(40) for candidate in search.ask()]
    recipes = []
    for candidate in candidates:
        search.tell(candidate, closeness(search.state_dict(candidate)))
    recipes = [candidate.recipe for candidate in candidates]
    assert len({recipe.to_yaml() for recipe in recipes}) > 30


def test_a_callback_hears_every_evaluation() -> None:
    heard: list[Scored] = []
    search = niches()
    search.run(evaluations=10, callback=heard.append)
    assert [tuple(scored.objectives.values()) for scored in heard] == [point.objectives for point in search.history]


def test_a_search_goes_on_after_its_scorer_failed() -> None:
    calls = 0

    def failing(weights: Mapping[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return closeness(weights)

    search = evomerge.Search.over(sources(), failing, searcher="cma_es", chunks=4)
    with pytest.raises(KeyboardInterrupt):
        search.run(evaluations=40)
    assert len(search.history) == 14
    search.run(evaluations=26)
    straight = evomerge.Search.over(sources(), closeness, searcher="cma_es", chunks=4)
    straight.run(evaluations=40)
    assert search.history == straight.history


def test_a_search_ends_when_its_searcher_does() -> None:
    options = {"sigma": 0.1, "tolerance": 0.09}
    search = evomerge.Search.over(sources(), closeness, searcher="cma_es", options=options, chunks=2)
    search.run(evaluations=2000)
    assert search.searcher.finished is not None
    assert len(search.history) < 2000
    before = len(search.history)
    search.run(evaluations=10)
    assert len(search.history) == before


def test_objectives_are_expressions_and_best_follows_the_scalarisation() -> None:
    objectives = ["front", "0.5 * back"]
    search = evomerge.Search.over(sources(), halves, objectives=objectives, scalarize="min", options={"archive": 8})
    search.run(evaluations=40)
    assert list(search.best.objectives) == objectives
    assert min(search.best.objectives.values()) == max(min(point.objectives) for point in search.history)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda weights: 0.5, "expected one number a sample, got a single number"),
        (lambda weights: closeness(weights) * torch.nan, "nan for sample 0; every score must be finite"),
        (lambda weights: closeness(weights) + 1, r"outside \[0, 1\]"),
        (lambda weights: "good", "expected one number a sample"),
    ],
)
def test_scores_that_cannot_be_used_are_refused_in_one_sentence(scorer: Any, message: str) -> None:
    search = evomerge.Search.over(sources(), scorer, options={"archive": 8})
    with pytest.raises(ConfigError, match=message) as caught:
        search.run(evaluations=3)
    assert "\n" not in str(caught.value)
    assert search.history == ()


def test_scores_of_changing_length_are_refused() -> None:
    lengths = iter([40, 40, 30])
    search = evomerge.Search.over(sources(), lambda weights: closeness(weights)[: next(lengths)])
    with pytest.raises(ConfigError, match="30 samples, and 40 before"):
        search.run(evaluations=3)


def test_scores_of_any_range_do_where_no_sample_competes() -> None:
    search = evomerge.Search.over(sources(), lambda weights: closeness(weights) * 100 - 50, searcher="random", chunks=4)
    search.run(evaluations=5)
    assert search.best.objectives["score"] > 1


def test_scores_of_zero_are_no_obstacle() -> None:
    search = evomerge.Search.over(sources(), lambda weights: torch.zeros(5), options={"archive": 4})
    search.run(evaluations=30)
    assert search.best.objectives == {"score": 0.0}


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(SourceError, match="at least two"):
        evomerge.Search.over({"one": sources()["model0"]}, closeness)
    with pytest.raises(ConfigError, match="did you mean 'natural_niches'"):
        niches(searcher="natural_niche", options={})
    with pytest.raises(ConfigError, match="did you mean 'archive'"):
        niches(options={"archiv": 8})
    with pytest.raises(ConfigError, match="archive: 2 members, and 3 sources"):
        niches(3, options={"archive": 2})
    with pytest.raises(ConfigError, match="seed"):
        niches(seed=-1)
    with pytest.raises(ConfigError, match="41 chunks"):
        niches(searcher="cma_es", options={}, chunks=SIZE + 1)


def test_states_that_have_no_answer_are_refused() -> None:
    search = evomerge.Search.over(sources(), closeness, searcher="cma_es", chunks=2)
    with pytest.raises(StateError, match="nothing was scored yet"):
        _ = search.best
    search.ask(100)
    with pytest.raises(StateError, match="asked by hand"):
        search.run(evaluations=1)
