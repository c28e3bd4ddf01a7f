"""Steered searches: what is adopted and held, and who hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.search import Candidate, Outcome, SearchConfig, Steered, create_searcher, steered_searcher
from evomerge.spaces import GroupsConfig, ParameterSpace, SpaceConfig
from evomerge.spaces.held import HeldSpace
from evomerge.spaces.types import Genome, Space
from evomerge.testing.searchers import drive, quadratic
from evomerge.testing.spaces import BoxSpace, BreedingBox, method_choices


def steered(searcher: str, space: Space, **options: Any) -> Steered:
    return steered_searcher(SearchConfig(searcher=searcher, seed=2, options=options), space)


SEARCHERS: Mapping[str, tuple[type[BoxSpace], dict[str, Any]]] = {
    "random": (BoxSpace, {}),
    "cma_es": (BoxSpace, {"population": 4}),
    "tpe": (BoxSpace, {"random": 3}),
    "natural_niches": (BreedingBox, {}),
}


@pytest.mark.parametrize("name", SEARCHERS)
def test_without_steering_it_asks_what_its_searcher_asks(name: str) -> None:
    kind, options = SEARCHERS[name]
    space = kind()
    alone = create_searcher(SearchConfig(searcher=name, seed=2, options=options), space)
    candidates, events = drive(alone, quadratic(space), 30)
    found, same = drive(steered(name, space, **options), quadratic(space), 30)
    assert [(c.id, c.genome, c.parents, c.origin) for c in found] == [
        (c.id, c.genome, c.parents, c.origin) for c in candidates
    ]
    assert same == events


def test_an_adopted_candidate_has_the_next_number_and_the_searcher_goes_on_as_before() -> None:
    space = BoxSpace()
    alone, search = (steered("cma_es", space, population=4) for _ in range(2))
    score = quadratic(space)
    undisturbed = [c.genome for c in drive(alone, score, 12, batch=1)[0]]
    found: list[Candidate] = []
    for number in range(12):
        found += drive(search, score, 1, batch=1)[0]
        if number in (0, 5):
            adopted = search.adopt(space.start)
            assert adopted.id == found[-1].id + 1
            assert adopted.origin == "injected"
            search.tell(adopted, Outcome("feasible", (1.0,)))
    assert [c.genome for c in found] == undisturbed
    assert [c.id for c in found] == [0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]


def test_it_is_told_once() -> None:
    search = steered("random", BoxSpace())
    adopted = search.adopt(BoxSpace().start)
    search.tell(adopted, Outcome("failed"))
    with pytest.raises(ValueError, match="candidate 0 was told already"):
        search.tell(adopted, Outcome("failed"))


@pytest.mark.parametrize("name", ["natural_niches", "map_elites"])
def test_a_population_takes_it_in_and_names_it_as_a_parent(name: str) -> None:
    space = BreedingBox()
    options = {"measures": ("toy.closeness", "toy.place")} if name == "map_elites" else {"metrics": ("toy.closeness",)}
    search = steered(name, space, **options)
    score = quadratic(space)
    adopted = search.adopt(tuple(0.7 * 1.5 for _ in space.dimensions))  # the optimum
    search.tell(adopted, score(adopted))
    candidates, _ = drive(search, score, 30)
    assert candidates[0].origin.endswith("source")  # founders are not skipped
    assert any(adopted.id in candidate.parents for candidate in candidates)
    assert all(0 <= parent < candidate.id for candidate in candidates for parent in candidate.parents)


def test_all_stages_of_a_portfolio_hear_of_it_beside_what_they_hear_of_each_other() -> None:
    space = BreedingBox()
    stages = [{"searcher": "natural_niches", "options": {"metrics": ["toy.closeness"]}}, {"searcher": "tpe"}]
    search = steered("portfolio", space, together=True, stages=stages)
    score = quadratic(space)
    adopted = search.adopt(tuple(0.7 * 1.5 for _ in space.dimensions))
    search.tell(adopted, score(adopted))
    candidates, _ = drive(search, score, 100)
    bred = [candidate for candidate in candidates if candidate.parents]
    assert any(adopted.id in candidate.parents for candidate in bred)
    others = {candidate.id for candidate in candidates if "tpe" in candidate.origin}
    assert any(others.intersection(candidate.parents) for candidate in bred)
    assert all(0 <= parent < candidate.id for candidate in bred for parent in candidate.parents)


class TestHolding:
    """Sources at a weight of a person's choice."""

    @pytest.mark.parametrize("name", SEARCHERS)
    def test_every_candidate_asked_from_then_on_has_it_until_it_is_freed(self, name: str) -> None:
        kind, options = SEARCHERS[name]
        space = kind()
        search = steered(name, space, **options)
        score = quadratic(space)
        drive(search, score, 12)
        search.hold("expert", 0.25)
        assert search.held == {"expert": 0.25}
        held, _ = drive(search, score, 12)
        assert {gene for c in held for gene in c.genome[: space.num_weights]} == {0.25}
        assert all(space.decode(c.genome) == c.recipe for c in held)
        search.hold("expert", None)
        free, _ = drive(search, score, 24)
        assert len({c.genome for c in free}) > 12
        assert len({gene for c in free for gene in c.genome[: space.num_weights]}) > 12

    def test_a_population_keeps_individuals_as_they_were_scored(self) -> None:
        space = BreedingBox()
        search = steered("natural_niches", space, metrics=("toy.closeness",))
        score = quadratic(space)
        search.hold("expert", 0.25)
        candidates, _ = drive(search, score, 6)
        assert {c.genome for c in candidates} == {(0.25, 0.25, 0.25)}

    @pytest.mark.parametrize(
        ("source", "weight", "words"),
        [
            ("base", 0.0, "its weight does not vary"),
            ("expert", 7.0, "must be a number in"),
            ("expert", -1.0, "sources."),
        ],
    )
    def test_what_cannot_be_held_is_refused_and_changes_nothing(self, source: str, weight: float, words: str) -> None:
        search = steered("random", BoxSpace())
        search.hold("expert", 0.5)
        with pytest.raises(ConfigError, match=words):
            search.hold(source, weight)
        assert search.held == {"expert": 0.5}
        assert search.ask(1)[0].genome[:3] == (0.5, 0.5, 0.5)

    def test_weights_that_are_not_active_stay_so(self) -> None:
        space = HeldSpace(method_choices())
        assert len(space.own.weights_of("expert")) == 4  # type: ignore[attr-defined]
        space.hold("expert", 0.5)
        genome = space.settled(space.start)
        assert [value is None for value in genome] == [value is None for value in space.start]
        space.decode(genome)

    def test_only_the_weights_of_the_source_are_held(self) -> None:
        config = SpaceConfig(method="ties", groups=GroupsConfig(layers=2))
        from evomerge.recipe import SourceConfig

        sources = {alias: SourceConfig(model=f"org/{alias}") for alias in ("base", "weight", "density")}
        space = HeldSpace(ParameterSpace(config, sources=sources, base="base", num_layers=2))
        space.hold("density", 0.0)
        changed = [
            dimension.name
            for dimension, old, new in zip(space.dimensions, space.start, space.settled(space.start), strict=True)
            if old != new
        ]
        assert changed == ["weight/density/layers.0", "weight/density/layers.1"]


@given(
    events=st.lists(st.sampled_from(["ask", "tell", "adopt", "hold", "free"]), max_size=40),
    name=st.sampled_from(sorted(SEARCHERS)),
)
@settings(max_examples=25, deadline=None)
def test_any_order_of_steering_replays(events: list[str], name: str) -> None:
    def play() -> list[tuple[int, Genome, tuple[int, ...]]]:
        kind, options = SEARCHERS[name]
        space = kind()
        search, score = steered(name, space, **options), quadratic(space)
        asked: list[Candidate] = []
        flight: list[Candidate] = []
        for place, event in enumerate(events):
            new: list[Candidate] = []
            if event == "ask":
                new = search.ask(2)
            elif event == "adopt":
                new = [search.adopt(space.start)]
            elif event == "tell" and flight:
                done = flight.pop(place % len(flight))
                search.tell(done, score(done))
            elif event in ("hold", "free"):
                search.hold("expert", 0.1 * (place % 10) if event == "hold" else None)
            asked += new
            flight += new
        return [(candidate.id, candidate.genome, candidate.parents) for candidate in asked]

    first = play()
    assert [number for number, *_ in first] == list(range(len(first)))
    assert play() == first
